"""Zero-shot classification and retrieval, as pure functions of embeddings."""

from clipdata_jax.evaluation.retrieval import RetrievalRanks as RetrievalRanks
from clipdata_jax.evaluation.retrieval import recall as recall
from clipdata_jax.evaluation.retrieval import retrieval_ranks as retrieval_ranks
from clipdata_jax.evaluation.zero_shot import Accuracy as Accuracy
from clipdata_jax.evaluation.zero_shot import accuracy as accuracy
from clipdata_jax.evaluation.zero_shot import class_ranks as class_ranks
from clipdata_jax.evaluation.zero_shot import zero_shot_weights as zero_shot_weights
