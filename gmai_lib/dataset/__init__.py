"""Annotated medical sources in, annotation-guided image-text pairs out. Paper: section 3.1."""
