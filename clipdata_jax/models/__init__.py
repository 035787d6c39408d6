"""CLIP's and SigLIP's towers, and what a checkpoint holds: weights, tokenizer, image preprocessing."""

from clipdata_jax.models.architectures import sized_config as sized_config
from clipdata_jax.models.clip import CLIP as CLIP
from clipdata_jax.models.clip_config import CLIPConfig as CLIPConfig
from clipdata_jax.models.clip_config import TextConfig as TextConfig
from clipdata_jax.models.clip_config import TowerConfig as TowerConfig
from clipdata_jax.models.clip_config import VisionConfig as VisionConfig
from clipdata_jax.models.image_settings import load_image_transform as load_image_transform
from clipdata_jax.models.image_settings import write_preprocessor_config as write_preprocessor_config
from clipdata_jax.models.image_transform import ImageTransform as ImageTransform
from clipdata_jax.models.image_transform import open_image as open_image
from clipdata_jax.models.load import checkpoint_digest as checkpoint_digest
from clipdata_jax.models.load import load_clip as load_clip
from clipdata_jax.models.load_tokenizer import load_tokenizer as load_tokenizer
from clipdata_jax.models.published_models import SIGLIP_BASE_PATCH16_224 as SIGLIP_BASE_PATCH16_224
from clipdata_jax.models.published_models import SIGLIP_SO400M_PATCH14_384 as SIGLIP_SO400M_PATCH14_384
from clipdata_jax.models.published_models import VIT_B_16 as VIT_B_16
from clipdata_jax.models.published_models import VIT_B_32 as VIT_B_32
from clipdata_jax.models.published_models import VIT_BIG_G_14 as VIT_BIG_G_14
from clipdata_jax.models.published_models import VIT_H_14 as VIT_H_14
from clipdata_jax.models.published_models import VIT_L_14 as VIT_L_14
from clipdata_jax.models.published_models import VIT_L_14_336 as VIT_L_14_336
from clipdata_jax.models.published_models import VIT_SMALL_G_14 as VIT_SMALL_G_14
from clipdata_jax.models.tokenizer import Tokenizer as Tokenizer
from clipdata_jax.models.train_tokenizer import train_tokenizer as train_tokenizer
from clipdata_jax.models.weights import save_clip as save_clip
