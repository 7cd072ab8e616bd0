"""Trained models in the forms that others read, and others' models in ours."""
