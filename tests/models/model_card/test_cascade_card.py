from models import SHIPPED
from models.cascade.config import read_cascade
from models.model_card.card import CARD, split_card
from models.model_card.cascade_card import draw_figures


def test_the_card_of_the_shipped_cascade_matches_its_config() -> None:
    folder = SHIPPED / "cifar10_cascade" / "2"
    _, figures, _ = split_card(folder / CARD)
    assert figures == draw_figures(read_cascade(folder))
