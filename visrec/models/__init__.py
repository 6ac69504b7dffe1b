"""Every model by name. A model is one file, and one entry here."""

from visrec.models.base import Model
from visrec.models.bpr_mf import BprMf
from visrec.models.convncf import ConvNcf
from visrec.models.cooccurrence import Cooccurrence
from visrec.models.curatornet import CuratorNet
from visrec.models.deepstyle import DeepStyle
from visrec.models.ease import Ease
from visrec.models.embedding_mlp import EmbeddingMlp
from visrec.models.hybrid import Hybrid
from visrec.models.multivae import MultiVae
from visrec.models.popularity import Popularity
from visrec.models.random import Random
from visrec.models.recent_popularity import RecentPopularity
from visrec.models.vbpr import Vbpr
from visrec.models.visrank import VisRank
from visrec.models.youtube_dnn import YoutubeDnn

MODELS: dict[str, type[Model]] = {
    "bpr_mf": BprMf,
    "convncf": ConvNcf,
    "cooccurrence": Cooccurrence,
    "curatornet": CuratorNet,
    "deepstyle": DeepStyle,
    "ease": Ease,
    "embedding_mlp": EmbeddingMlp,
    "hybrid": Hybrid,
    "multivae": MultiVae,
    "popularity": Popularity,
    "random": Random,
    "recent_popularity": RecentPopularity,
    "vbpr": Vbpr,
    "visrank": VisRank,
    "youtube_dnn": YoutubeDnn,
}
