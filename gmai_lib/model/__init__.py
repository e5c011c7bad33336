"""Vision tower, projector and language model in the LLaVA layout. Paper: section 4.1."""
