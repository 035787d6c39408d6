"""Sources of samples: webdataset tars, parquet with images inside, folders, tables of images and captions, TFDS.

A source is one unit of work: a tar, or up to 10,000 images of anything else.
"""
