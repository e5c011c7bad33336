"""cards: numbers come from counts, the strictest licence binds, nothing clinical is claimed."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from gmai_lib import cards, config, outputs
from gmai_lib.schema import IMAGE_MODALITIES, SUBSETS

MANIFEST = {
    "writer": "template-1",
    "num_samples": 10,
    "num_records": 4,
    "use": "research",
    "chinese_fraction": 0.3,
    "fidelity": {"checked": 9, "refused": [{"id": "x", "reasons": []}]},
    "counts": [
        {"source": "a", "subset": "caption", "language": "en", "split": "train"}
        | {"modality": "CT", "samples": 6},
        {"source": "a", "subset": "instruct", "language": "zh", "split": "test"}
        | {"modality": "MR", "samples": 2},
        {"source": "b", "subset": "text_single", "language": "en", "split": "train"}
        | {"modality": "text", "samples": 2},
    ],
}
MEASURED = {"texts": 50, "false_alarms": 1, "planted": 200, "caught": 199}
RECORDS = [
    {"source": "a", "license": "MIT", "access": "open", "modality": "CT"},
    {"source": "a", "license": "MIT", "access": "open", "modality": "MR"},
    {"source": "b", "license": "CC-BY-4.0", "access": "open", "modality": "text"},
]
LEDGER = [
    {"source": "a", "level": "item", "outcome": "kept", "count": 2},
    {"source": "a", "level": "item", "outcome": "no label", "count": 3},
    {"source": "a", "level": "annotation", "outcome": "empty box", "count": 9},
]


def test_shares_are_percent_of_image_samples_and_of_all_samples():
    shares = {row["modality"]: row for row in cards.modality_shares(MANIFEST)}
    assert shares["CT"]["ours"] == 75.0 and shares["MR"]["ours"] == 25.0
    assert shares["CT"]["paper"] == 26.8
    row = MANIFEST["counts"][0] | {"modality": "unstated", "samples": 8}
    *known, other = cards.modality_shares(MANIFEST | {"counts": [*MANIFEST["counts"], row]})
    assert other == {"modality": "unstated", "ours": 50.0, "paper": None} and len(known) == 13
    subsets = {row["subset"]: row for row in cards.subset_shares(MANIFEST)}
    assert subsets["caption"]["ours"] == 60.0 and list(subsets) == list(SUBSETS)
    assert sum(row["paper"] for row in subsets.values()) == pytest.approx(100, abs=0.3)


def test_the_papers_modalities_are_those_of_the_schema():
    assert set(cards.PAPER_MODALITY_SHARES) == set(IMAGE_MODALITIES)
    assert sum(cards.PAPER_MODALITY_SHARES.values()) == pytest.approx(100, abs=0.2)


def test_source_rows_count_items_not_annotations():
    rows = {row["source"]: row for row in cards.source_rows(MANIFEST, RECORDS, LEDGER)}
    assert rows["a"]["dropped"] == 3 and rows["a"]["reasons"] == "no label (3)"
    assert rows["a"]["samples"] == 8 and rows["a"]["modality"] == "CT, MR"
    assert rows["b"]["dropped"] == 0


def test_dataset_card_has_valid_metadata_counts_and_the_non_clinical_statement():
    sources = cards.source_rows(MANIFEST, RECORDS, LEDGER)
    _, head, body = cards.dataset_card(MANIFEST, sources, MEASURED).split("---\n", 2)
    meta = yaml.safe_load(head)
    assert meta["license"] == "cc-by-4.0" and meta["language"] == ["en", "zh"]
    assert cards.NOT_CLINICAL in body and "10 samples from 4 records" in body
    assert "no label (3)" in body and "| train | 8 |" in body
    assert "9 samples were checked against their facts, 1 of them refused" in body
    assert "caught 99.5 % of 200 planted errors and refused 2.0 % of 50 right" in body


def test_the_hub_library_reads_both_cards():
    from huggingface_hub import DatasetCard, DatasetCardData, ModelCard

    sources = cards.source_rows(MANIFEST, RECORDS, LEDGER)
    written = cards.dataset_card(MANIFEST, sources, MEASURED)
    card = DatasetCard(written, ignore_metadata_errors=False)
    assert isinstance(card.data, DatasetCardData)
    assert card.data.license == "cc-by-4.0" and card.data.language == ["en", "zh"]
    assert card.data.task_categories == ["image-text-to-text", "visual-question-answering"]
    again = DatasetCardData(**yaml.safe_load(written.split("---\n", 2)[1]))
    assert again.to_dict() == card.data.to_dict()
    row = {"benchmark": "phantom", "kind": "overall", "metric": "accuracy", "num_items": 1}
    row |= {"score": 0.6, "ci_low": 0.6, "ci_high": 0.6, "blind_score": 0.3, "majority_score": 0.2}
    parts = [{"part": "projector", "parameters": 2}]
    stages = [{"stage": "shallow_alignment", "steps": 3, "seconds": 6, "final_loss": "1.2"}]
    model = ModelCard(cards.model_card(config.load("mini"), [row], parts, stages))
    assert model.data.library_name == "transformers"


def test_dataset_card_says_other_for_a_licence_it_cannot_name():
    sources = cards.source_rows(MANIFEST, [r | {"license": "unstated"} for r in RECORDS], LEDGER)
    head = cards.dataset_card(MANIFEST, sources, MEASURED).split("---\n", 2)[1]
    meta = yaml.safe_load(head)
    assert meta["license"] == "other" and meta["license_name"] == "unstated"


def test_dataset_card_says_what_every_licence_allows():
    rows = [r | {"license": "CC-BY-NC-4.0"} if r["source"] == "b" else r for r in RECORDS]
    rows.append(rows[0] | {"license": "CC-BY-SA-4.0"})
    card = cards.dataset_card(MANIFEST, cards.source_rows(MANIFEST, rows, LEDGER), MEASURED)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-nc-4.0"
    assert "| a | MIT | open | any use, the owner is named | allowed |" in card
    refused = "no commercial use, the owner is named | license CC-BY-NC-4.0 is non-commercial |"
    assert f"| b | CC-BY-NC-4.0 | open | {refused}" in card
    assert "Built for research use" in card
    assert "does not carry all conditions of CC-BY-SA-4.0" in card


def test_model_card_quotes_scores_with_their_blind_score():
    row = {"benchmark": "phantom", "kind": "overall", "metric": "accuracy", "num_items": 1200}
    row |= {"score": 0.61234, "ci_low": 0.6, "ci_high": 0.63, "blind_score": 0.3}
    row |= {"majority_score": 0.28}
    parts = [{"part": "language_model", "parameters": 2_000_000, "trainable": 0}]
    stages = [{"stage": "shallow_alignment", "steps": 300, "seconds": 60, "final_loss": "1.2"}]
    card = cards.model_card(config.load("mini"), [row], parts, stages)
    line = "| phantom | overall | accuracy | 1,200 | 0.612 | 0.600 | 0.630 | 0.300 | 0.280 |"
    assert line in card and cards.NOT_CLINICAL in card and "2,000,000" in card
    assert "stand-ins trained from scratch" in card
    paper = cards.model_card(config.load("paper"), [row], parts, stages)
    assert "openai/clip-vit-large-patch14-336" in paper


def test_table_escapes_and_refuses_nothing():
    assert cards.table([{"a": "x|y", "b": 1200}]) == "| a | b |\n| --- | --- |\n| x\\|y | 1,200 |\n"
    with pytest.raises(ValueError, match="at least one row"):
        cards.table([])


def test_every_stage_of_the_profile_is_in_the_model_card():
    names = [stage["name"] for stage in cards._stages(config.load("mini"))]
    assert names == [stage["name"] for stage in asdict(config.load("mini"))["stages"]]


def finished_run(folder: Path) -> Path:
    """The four result files that the README's tables are made of, with round numbers."""
    machine = {"cores": 2, "python": "3.11.7"}
    found = {"machine": machine, "devices": [], "packages": {"torch": "2.13.0"}, "commit": "abc"}
    outputs.write_json(folder / "00_environment" / "environment.json", found)
    outputs.write_json(folder / "09_instruction_tuning" / "run.json", {"seed": 7})
    run = {"notebook": "00_environment", "seconds": 90.0, "peak_memory_mb": 1500}
    outputs.write_json(folder / "chain.json", {"00_environment": run})
    row = {"benchmark": "phantom", "kind": "overall", "metric": "accuracy", "num_items": 10}
    row |= {"score": 0.9, "ci_low": 0.8, "ci_high": 0.95, "blind_score": 0.2}
    row |= {"majority_score": 0.3, "language": "all", "subset": "all"}
    rows = [row | {"checkpoint": name} for name in ("07", "09")]
    rows.append(row | {"checkpoint": "09", "language": "zh", "score": 0.123})
    outputs.write_json(folder / "10_evaluate" / "results.json", rows)
    return folder


def test_readme_tables_quote_the_run(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- chain:begin -->\nold\n<!-- chain:end -->\nb\n")
    readme.write_text(readme.read_text() + "<!-- results:begin -->\n<!-- results:end -->\nc\n")
    cards.main([str(readme), str(finished_run(tmp_path / "run"))])
    text = readme.read_text()
    assert "old" not in text and text.startswith("a\n") and text.endswith("c\n")
    assert "commit abc, seed 7" in text
    assert "1.5 minutes" in text and "| 00_environment | 90 | 1.5 |" in text
    assert "| 09 | 10 | 90.0 | 80.0 to 95.0 | 20.0 | 30.0 |" in text
    assert "12.3" not in text, "rows of one language are not the headline"
    again = text
    cards.main([str(readme), str(tmp_path / "run")])
    assert readme.read_text() == again


def test_readme_without_markers_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing to fill")
    with pytest.raises(ValueError, match="no markers"):
        cards.fill_readme(readme, {"chain": "x"})
    assert readme.read_text() == "nothing to fill"
