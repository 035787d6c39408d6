"""Sources of samples: webdataset tars, folders of images, tables of images and captions, TFDS datasets.

A source is one unit of work: a tar, or up to 10,000 images of anything else.
"""
