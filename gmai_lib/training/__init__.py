"""The three training stages: packing, loader, DeepSpeed loop and launcher. Paper: section 4.2."""
