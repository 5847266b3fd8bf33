"""Runs on the Hugging Face hub: their cards, sending them there and bringing them back."""

from ofqctl.hub.card import card
from ofqctl.hub.contents import Contents, contents_of
from ofqctl.hub.pulling import TRAINING, Pulled, pull
from ofqctl.hub.pushing import CARD, check_repository, push

__all__ = ["CARD", "TRAINING", "Contents", "Pulled", "card", "check_repository", "contents_of", "pull", "push"]
