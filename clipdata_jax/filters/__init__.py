"""The seven filters of DataComp: conditions, presets, images, languages, WordNet; MetaCLIP's entries in captions."""
