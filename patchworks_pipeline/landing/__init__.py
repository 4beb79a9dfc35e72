"""What lies in the landing folder: candidates, and which of them have arrived."""
