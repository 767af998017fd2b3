"""Scores of recoveries against the truth: one value a sample, in the truth's order."""

from .base import ImageMetric
from .caption import Bleu1, Bleu2, Bleu3, Bleu4, Cider, RougeL
from .encoder import Cosine
from .fluency import Distinct, Fluency, Repetition, beside_human, fluency_of
from .human import human_ceiling
from .identity import IdentityMetric, KnnDistance, Rank1
from .java import Meteor, Spice
from .label import Agreement, Top1, Top5, TopLabels
from .likelihood import Likelihood, Nll, NllGap
from .perceptual import Lpips
from .perplexity import Perplexity
from .pixel import Mse, Psnr
from .retrieval import Recall1, Recall5, Recall10
from .sentences import CaptionMetric
from .structural import MsSsim, Ssim

__all__ = [
    "Agreement",
    "Bleu1",
    "Bleu2",
    "Bleu3",
    "Bleu4",
    "CaptionMetric",
    "Cider",
    "Cosine",
    "Distinct",
    "Fluency",
    "IdentityMetric",
    "ImageMetric",
    "KnnDistance",
    "Likelihood",
    "Lpips",
    "Meteor",
    "MsSsim",
    "Mse",
    "Nll",
    "NllGap",
    "Perplexity",
    "Psnr",
    "Rank1",
    "Recall1",
    "Recall5",
    "Recall10",
    "Repetition",
    "RougeL",
    "Spice",
    "Ssim",
    "Top1",
    "Top5",
    "TopLabels",
    "beside_human",
    "fluency_of",
    "human_ceiling",
]
