"""What a person looks at: overlays, charts, the layers of a viewer."""
