"""Nobody is learned without a consent that holds, and no minor at all; every refusal is one line."""

import datetime as dt
import json

import pytest

from pvchat.dataset_builder import ConsentRecord, SubjectSpec
from pvchat.dataset_builder.consent import (
    MINORS,
    check_consent,
    check_publishing,
    consent_id,
    declare_consent,
    read_consent,
    refuse_minor,
    require_consent,
)
from pvchat.errors import PVChatError

TODAY = dt.date(2026, 6, 1)
RECORD = {"given_by": "N. Z.", "date": "2026-01-31", "scope": "train a model for me"}


def written(tmp_path, **changes):
    path = tmp_path / "consent.json"
    path.write_text(json.dumps(RECORD | changes), encoding="utf-8")
    return path


def refused(call, *args):
    with pytest.raises(PVChatError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_record_says_who_when_to_what_and_until_when(tmp_path):
    record = read_consent(written(tmp_path, expires="2027-01-31"))
    assert (record.given_by, record.date, record.scope, record.expires) == (*RECORD.values(), "2027-01-31")
    check_consent(record, TODAY)


@pytest.mark.parametrize("field", ["given_by", "date", "scope"])
def test_a_record_that_lacks_something_is_refused(tmp_path, field):
    path = written(tmp_path)
    path.write_text(json.dumps({k: v for k, v in RECORD.items() if k != field}), encoding="utf-8")
    assert field in refused(read_consent, path)
    assert field in refused(read_consent, written(tmp_path, **{field: ""}))


def test_a_file_that_is_no_record_is_refused(tmp_path):
    assert "cannot be read" in refused(read_consent, tmp_path / "none.json")
    for text in ("", "{", "[]", '"yes"', '{"scope": 1}'):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        refused(read_consent, tmp_path / "bad.json")
    assert "witness" in refused(read_consent, written(tmp_path, witness="me"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expires": "2026-05-31"}, "ended on 2026-05-31"),
        ({"expires": "2025-12-31"}, "before it begins"),
        ({"date": "2026-06-02"}, "still to come"),
    ],
)
def test_a_consent_that_does_not_hold_today_is_refused(tmp_path, changes, message):
    record = read_consent(written(tmp_path, **changes))
    assert message in refused(check_consent, record, TODAY)
    assert message in refused(require_consent, SubjectSpec("Nz", "clip.mp4", record), TODAY)


def test_the_last_day_still_counts_and_no_end_means_no_end(tmp_path):
    check_consent(read_consent(written(tmp_path, expires="2026-06-01")), TODAY)
    check_consent(read_consent(written(tmp_path)), TODAY.replace(year=2096))


def test_without_a_record_nobody_is_learned():
    assert "--i-have-consent" in refused(require_consent, SubjectSpec("Nz", "clip.mp4"))


def test_minors_are_refused_whoever_agrees(tmp_path):
    assert "minor" in refused(read_consent, written(tmp_path, adult=False))
    assert read_consent(written(tmp_path, adult=True)).given_by == "N. Z."
    record = read_consent(written(tmp_path))
    for noun in sorted(MINORS):
        assert noun in refused(require_consent, SubjectSpec("Nz", "clip.mp4", record, noun), TODAY)
    assert "minor" in refused(refuse_minor, " Child ")
    for word in ("person", "woman", "man", "young", None):
        refuse_minor(word)


def test_a_record_cannot_call_a_real_person_fictional(tmp_path):
    assert "fictional" in refused(read_consent, written(tmp_path, fictional=True))


def test_a_declaration_is_a_record_of_today_that_says_so():
    record = declare_consent("<Nz>", "train a model that recognises this person", TODAY)
    assert (record.given_by, record.date, record.expires) == ("Nz", "2026-06-01", None)
    assert "adult" in record.scope and "--i-have-consent" in record.scope and not record.fictional
    check_consent(record, TODAY)


def test_publishing_needs_a_scope_that_says_so(tmp_path):
    record = read_consent(written(tmp_path))
    assert "does not say 'publish'" in refused(check_publishing, record, TODAY)
    check_publishing(read_consent(written(tmp_path, scope="train; Publish the dataset")), TODAY)
    ended = read_consent(written(tmp_path, scope="publish", expires="2026-05-31"))
    assert "ended" in refused(check_publishing, ended, TODAY)


def test_records_are_numbered_by_their_content(tmp_path):
    record = read_consent(written(tmp_path))
    assert consent_id(record) == consent_id(ConsentRecord.from_json(record.to_json()))
    assert consent_id(record) != consent_id(read_consent(written(tmp_path, scope="publish")))
