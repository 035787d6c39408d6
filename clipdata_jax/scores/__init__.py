"""Scores: pure, jitted functions of arrays, one float32 a row out; no files, no models."""

from clipdata_jax.scores.clip_score import clip_score as clip_score
from clipdata_jax.scores.divisions import cell_log_sums as cell_log_sums
from clipdata_jax.scores.divisions import neg_clip_loss_divisions as neg_clip_loss_divisions
from clipdata_jax.scores.divisions import neg_clip_loss_statistics as neg_clip_loss_statistics
from clipdata_jax.scores.heads import head_score as head_score
from clipdata_jax.scores.k_means import assign_clusters as assign_clusters
from clipdata_jax.scores.k_means import lloyd_step as lloyd_step
from clipdata_jax.scores.near_duplicates import near_duplicates as near_duplicates
from clipdata_jax.scores.neg_clip_loss import neg_clip_loss as neg_clip_loss
from clipdata_jax.scores.neg_clip_loss import neg_clip_loss_sharded as neg_clip_loss_sharded
from clipdata_jax.scores.norm_sim import nearest_target as nearest_target
from clipdata_jax.scores.norm_sim import norm_sim as norm_sim
from clipdata_jax.scores.norm_sim_sharded import nearest_target_sharded as nearest_target_sharded
from clipdata_jax.scores.norm_sim_sharded import norm_sim_sharded as norm_sim_sharded
from clipdata_jax.scores.second_moment import norm_sim_moment as norm_sim_moment
from clipdata_jax.scores.second_moment import second_moment as second_moment
from clipdata_jax.scores.second_moment import vas as vas
