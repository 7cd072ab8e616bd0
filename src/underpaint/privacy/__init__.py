"""Privacy: what a model reveals about the images it was trained on."""
