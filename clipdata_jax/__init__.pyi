from clipdata_jax.errors import InputError as InputError
from clipdata_jax.models import CLIP as CLIP
from clipdata_jax.models import load_clip as load_clip
from clipdata_jax.models import load_image_transform as load_image_transform
from clipdata_jax.models import load_tokenizer as load_tokenizer
from clipdata_jax.models import save_clip as save_clip
from clipdata_jax.scores import assign_clusters as assign_clusters
from clipdata_jax.scores import cell_log_sums as cell_log_sums
from clipdata_jax.scores import clip_score as clip_score
from clipdata_jax.scores import head_score as head_score
from clipdata_jax.scores import lloyd_step as lloyd_step
from clipdata_jax.scores import near_duplicates as near_duplicates
from clipdata_jax.scores import nearest_target as nearest_target
from clipdata_jax.scores import nearest_target_sharded as nearest_target_sharded
from clipdata_jax.scores import neg_clip_loss as neg_clip_loss
from clipdata_jax.scores import neg_clip_loss_divisions as neg_clip_loss_divisions
from clipdata_jax.scores import neg_clip_loss_sharded as neg_clip_loss_sharded
from clipdata_jax.scores import neg_clip_loss_statistics as neg_clip_loss_statistics
from clipdata_jax.scores import norm_sim as norm_sim
from clipdata_jax.scores import norm_sim_moment as norm_sim_moment
from clipdata_jax.scores import norm_sim_sharded as norm_sim_sharded
from clipdata_jax.scores import second_moment as second_moment
from clipdata_jax.scores import vas as vas

__version__: str
