"""The dataset card: metadata that the Hub and `datasets` accept, and numbers that are those of the rows."""

import re

import pytest
from huggingface_hub import DatasetCard

from pvchat.dataset_builder.merge import merge_datasets
from pvchat.hub import refuse_private
from pvchat.model_card import dataset_card
from pvchat.model_card.dataset_card import size_category
from tests.small_datasets import PLAN, RECORD, write_dataset


@pytest.fixture
def drawn(tmp_path):
    return write_dataset(tmp_path / "drawn")


def card_of(dataset, **options):
    return dataset_card(dataset.manifest, dataset.root, **options)


def section(card, title):
    return str(card).split(f"## {title}\n")[1].split("\n## ")[0]


def cells(text):
    """The rows of the first table of a text, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if not set(row) <= set("|-")][1:]


def test_the_metadata_survive_the_hub_s_own_reader(drawn):
    data = DatasetCard(str(card_of(drawn))).data
    assert data.license == "apache-2.0" and data.size_categories == ["n<1K"]
    assert {"pvchat", "video", "synthetic"} <= set(data.tags)
    assert data.pretty_name == "Videos and questions about <Nz>"


def test_datasets_finds_two_configs_with_the_questions_as_default(drawn):
    metadata = pytest.importorskip("datasets.utils.metadata")
    configs = metadata.MetadataConfigs.from_dataset_card_data(card_of(drawn).data)
    assert set(configs) == {"qa", "videos"} and configs.get_default_config_name() == "qa"
    files = configs["videos"]["data_files"]
    assert files == [{"split": split, "path": f"videos/{split}.parquet"} for split in ("train", "test")]
    assert all((drawn.root / file["path"]).is_file() for file in files)


def test_size_categories_are_words_that_the_hub_knows():
    assert [size_category(n) for n in (0, 999, 1000, 31_868, 10**6, 10**9)] == [
        "n<1K", "n<1K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "10M<n<100M",
    ]  # fmt: skip


def test_the_tables_count_what_the_rows_hold(drawn):
    card = card_of(drawn)
    splits = {row[0]: [int(n) for n in row[1:]] for row in cells(section(card, "Splits"))}
    for split, numbers in splits.items():
        rows = drawn.split(split)
        assert numbers == [len(rows), sum(r.subject_present for r in rows), sum(len(r.qa) for r in rows)]
    origins = {
        (row[0], row[1]): (int(row[3]), int(row[4])) for row in cells(section(card, "Where the clips come from"))
    }
    assert set(origins) == {(split, origin) for split, origin, *_ in PLAN}
    assert sum(clips for clips, _ in origins.values()) == len(drawn.videos)
    assert sum(made for _, made in origins.values()) == sum(v.synthetic for v in drawn.videos) == 3
    assert "Synthetic share: 43 %" in str(card)


def test_every_row_of_a_table_has_the_columns_of_its_head(drawn):
    for table in re.findall(r"(?:^\|.*\n)+", str(card_of(drawn)), re.M):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_drawn_people_need_no_consent_and_real_ones_are_named_with_their_record_only(tmp_path, drawn):
    assert "do not exist" in section(card_of(drawn), "Consent")
    real = write_dataset(tmp_path / "real", consent=RECORD)
    card = card_of(real, consents=[RECORD])
    assert card.data.license == "other" and card.data.license_name == "consent-of-the-people-shown"
    consent = section(card, "Consent")
    assert real.manifest["consent_id"] in consent and "2026-01-31" in consent and "1 real person is shown" in consent
    assert RECORD.given_by not in str(card) and RECORD.scope not in str(card)


def test_terms_of_a_tool_close_the_licence_of_drawn_people_too(tmp_path):
    card = card_of(write_dataset(tmp_path / "nc", licences=("CC-BY-NC-4.0",)))
    assert card.data.license == "other" and "CC-BY-NC-4.0" in section(card, "Licence")


def test_limits_are_those_of_the_data(tmp_path, drawn):
    limits = section(card_of(drawn), "Known limits")
    assert "7 of 13 answers come from a fixed bank" in limits
    assert "4 answers were written by a model" in limits and "2 of them could not be reworded" in limits
    assert "2 answers state what the generator of the clip knew" in limits
    assert "no test split" not in limits and "not balanced" not in limits
    training = write_dataset(tmp_path / "training", plan=PLAN[:5])
    assert "no test split" in section(card_of(training), "Known limits")
    skewed = write_dataset(tmp_path / "skewed", plan=PLAN[:6])
    assert "1 of 1 clips show the subject" in section(card_of(skewed), "Known limits")


def test_a_card_names_what_it_leaves_out_and_where_to_load_it(drawn):
    card = str(card_of(drawn, repo="ada/nz", left_out=1))
    assert 'load_dataset("ada/nz", "qa", split="train")' in card and "Left out: 1 reference clip (" in card
    assert "Left out" not in str(card_of(drawn))


def test_several_people_share_one_card(tmp_path, drawn):
    real = write_dataset(tmp_path / "real", "<Ada>", consent=RECORD)
    manifest = merge_datasets([drawn.root, real.root], tmp_path / "both")
    card = dataset_card(manifest, tmp_path / "both")
    assert card.data.pretty_name == "Videos and questions about 2 people" and card.data.license == "other"
    assert "`<Ada>`" in section(card, "Consent") and "`<Nz>`" not in section(card, "Consent")
    assert str(card) == (tmp_path / "both" / "README.md").read_text(encoding="utf-8")


def test_a_card_says_nothing_about_the_machine(tmp_path, drawn):
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text(str(card_of(drawn)), encoding="utf-8")
    refuse_private(tmp_path / "card")
    assert "uncle-harry" not in str(card_of(drawn))
