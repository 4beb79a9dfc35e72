"""What a deployment decides: settings, clusters, pools of workers."""
