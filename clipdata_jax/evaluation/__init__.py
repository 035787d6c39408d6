"""Data sets in, figures out: zero-shot classification, retrieval, DataComp's tasks. Metrics are pure functions."""

from clipdata_jax.evaluation.metrics import classification_metrics as classification_metrics
from clipdata_jax.evaluation.metrics import face_metrics as face_metrics
from clipdata_jax.evaluation.metrics import group_metrics as group_metrics
from clipdata_jax.evaluation.metrics import jaccard_index as jaccard_index
from clipdata_jax.evaluation.metrics import jaccard_metrics as jaccard_metrics
from clipdata_jax.evaluation.metrics import macro_metrics as macro_metrics
from clipdata_jax.evaluation.metrics import recall_metrics as recall_metrics
from clipdata_jax.evaluation.metrics import satellite_metrics as satellite_metrics
from clipdata_jax.evaluation.nearest_candidates import nearest as nearest
from clipdata_jax.evaluation.retrieval import RetrievalRanks as RetrievalRanks
from clipdata_jax.evaluation.retrieval import recall as recall
from clipdata_jax.evaluation.retrieval import retrieval_ranks as retrieval_ranks
from clipdata_jax.evaluation.zero_shot import Accuracy as Accuracy
from clipdata_jax.evaluation.zero_shot import accuracy as accuracy
from clipdata_jax.evaluation.zero_shot import class_ranks as class_ranks
from clipdata_jax.evaluation.zero_shot import zero_shot_weights as zero_shot_weights
