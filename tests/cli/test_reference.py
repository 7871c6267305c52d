"""All plugins beside each other: what each needs and is for, where it comes from."""

from __future__ import annotations

from fedleak.cli.catalogue import catalogue
from fedleak.cli.reference import details, part


def test_the_wide_list_says_for_needs_and_source_of_attacks_and_label_rules():
    wide = details()
    for kind in ("attacks", "label rules"):
        assert wide[kind].keys() == catalogue()[kind].keys()
        for name, lines in wide[kind].items():
            assert {"needs", "for", "source"} <= dict(lines).keys(), name
    assert dict(wide["attacks"]["closed-form"])["needs"] == (
        "the update alone (for batches local-training) from gradients; local-training from weights"
    )
    assert dict(wide["attacks"]["natural"])["for"] == "smooth networks, batches, and FedAvg with little drift"
    assert dict(wide["label rules"]["ilrg"])["needs"] == (
        "the update alone (for batches local-training), a classifier with a bias"
    )
    assert dict(wide["label rules"]["given"])["needs"] == "labels"


def test_the_wide_list_says_cost_what_breaks_it_and_source_of_defenses():
    for name, lines in details()["defenses"].items():
        assert {"cost", "broken by", "source"} <= dict(lines).keys(), name


def test_a_part_of_a_docstring_ends_at_the_next_label_and_at_a_blank_line():
    document = "One line.\n\nSource: a paper,\nand: another\nLimits: none\nthat: are known\n\nMore: text"
    assert part(document, "Source") == "a paper, and: another"
    assert part(document, "Limits") == "none that: are known"
    assert part(document, "Cost") == ""
