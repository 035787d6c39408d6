"""NormSim to the 24 downstream sets that the paper's authors take as "Target": each a column, and their union.

The sets are the training splits of DataComp's evaluation tasks (CLEVR counts twice there, as two tasks on the same
images, which add nothing to a maximum). Those that TFDS has are read by name: it downloads them at the first run,
except `resisc45` and `imagenet2012`, whose archives it asks you to download by hand (tensorflow.org/datasets/catalog).
For the others put the training images, in any folders and as jpg, png or webp, where this says:

    targets/country211      CLIP's release (github.com/openai/CLIP, data/country211.md), folder train/
    targets/fgvc_aircraft   Oxford VGG's FGVC-Aircraft 2013b, the images of images_train.txt
    targets/gtsrb           INI's German Traffic Signs, GTSRB_Final_Training_Images (convert its .ppm to .png)
    targets/rendered_sst2   CLIP's release (data/rendered-sst2.md), folder train/
    targets/flickr8k        Flickr8k's Flicker8k_Dataset, the images of Flickr_8k.trainImages.txt

    clipdata score --config configs/downstream_24.py

Leave out what you don't have: a target is a line.
"""

from clipdata_jax.config import NegClipLoss, NormSim, Run, Score, Select

TFDS = {
    "caltech101": "caltech101/train",
    "cars": "cars196/train",
    "cifar10": "cifar10/train",
    "cifar100": "cifar100/train",
    "clevr": "clevr/train",
    "dtd": "dtd/train",
    "eurosat": "eurosat/train",
    "flowers": "oxford_flowers102/train",
    "food101": "food101/train",
    "imagenet": "imagenet2012/train",
    "kitti": "kitti/train",
    "mnist": "mnist/train",
    "pcam": "patch_camelyon/train",
    "pets": "oxford_iiit_pet/train",
    "resisc45": "resisc45/train",
    "stl10": "stl10/train",
    "svhn": "svhn_cropped/train",
    "voc2007": "voc/2007/train",
}
FOLDERS = ("country211", "fgvc_aircraft", "gtsrb", "rendered_sst2", "flickr8k")


def get_config() -> Run:
    """Options of `score` and `select` for DataComp medium."""
    targets = {name: f"tfds:{split}" for name, split in TFDS.items()}
    targets |= {name: f"targets/{name}" for name in FOLDERS}
    work = "datacomp/medium/downstream_24"
    return Run(
        score=Score(
            pool="datacomp/medium/metadata",
            out=f"{work}/scores",
            tag="l14",
            neg_clip_loss=NegClipLoss(batch_size=32_768, repeats=10, temperature=0.01),
            norm_sim=NormSim(
                target=tuple(f"{name}={source}" for name, source in sorted(targets.items())),
                target_model="clip-vit-large-patch14",
                union="downstream",
            ),
        ),
        select=Select(
            scores=(f"{work}/scores",),
            rule="top(neg_clip_loss, 0.3) >> top(norm_sim_inf_downstream, 0.2)",
            out=f"{work}/subset.npy",
        ),
    )
