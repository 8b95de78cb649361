"""The model card: complete, and nothing in a name can become markup."""

from recipe.reports import model_card

BASE = {"results": {"kind": "GGUF", "licence": "Apache-2.0"}, "inputs": {"w`|.gguf": "a" * 64}}
EVALUATION = {
    who: {"loss": loss, "perplexity": 9.0, "bits_per_byte": 1.0} for who, loss in (("base", 2.5), ("tuned", 1.25))
}


def test_licence_data_and_losses_are_in_the_card():
    corpus = {"inputs": {"raw.json": "b" * 64}}
    card = model_card.render("demo", BASE, {"LoRA": "rank 8"}, "vicuna_v1.1", corpus, EVALUATION, 0.001)
    for text in ("Apache-2.0", "b" * 64, "| validation loss | 2.5000 | 1.2500 |", "| LoRA | rank 8 |", "1.0e-03"):
        assert text in card
    assert card.startswith("---\nlibrary_name: transformers\n")


def test_what_is_not_known_is_named():
    card = model_card.render("demo", {**BASE, "results": {"kind": "GGUF"}}, {}, "chatml", None, None, 0.0)
    assert "The base: unknown" in card and "no loss is known" in card and "was not at hand" in card


def test_names_cannot_become_markup():
    card = model_card.render("<b>x|y</b>\x1b", BASE, {}, "a`|b", {"inputs": {"`<i>|": "c"}}, None, 0.0)
    assert "# \\<b\\>x\\|y\\</b\\>\\\\x1b" in card and "`a'/b`" in card and "`'<i>/`" in card
    assert "w'/.gguf" in card and "\x1b" not in card
