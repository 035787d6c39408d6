"""Images and captions in, embedding shards out."""
