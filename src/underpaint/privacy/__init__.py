"""Privacy: what a model gives away about the images it was trained on."""
