from fedleak.evaluation.beside import found_beside, said

READ = {"round": 1, "client": 0, "kind": "gradient", "labels": {"rule": "llg", "labels": [1, 1], "right": 0.5, "error": None}}
TESTED = {
    **{"test": "t", "others_from": "public images", "error": None},
    "candidates": [{"id": str(n), "member": n < 3, "score": float(-n), "called": None} for n in range(6)],
}


def canaries() -> list[dict]:
    own = {str(i): {str(j): 1.0 + 0.1 * (i + j) if i == j else 0.1 * (i - j) for j in range(4)} for i in range(4)}
    return [{"round": 1, "updates": own, "model": None}]


def test_nothing_read_is_nothing_said() -> None:
    assert found_beside([], [], 1, 1e-5) == {}
    assert said({}, None) == []


def test_each_finding_has_its_sentence() -> None:
    found = found_beside([{**READ, "membership": [TESTED]}], canaries(), 1, 1e-5)
    assert set(found) == {"labels", "membership", "empirical_epsilon"}
    labels, membership, epsilon = said(found, {"epsilon": 7.5})
    assert labels == "Labels: read off 1 update(s), 50% of them right as counts."
    assert "AUC 1.000 (1.000 to 1.000), 100 % (100 to 100) of 3 members" in membership
    assert epsilon.startswith("Empirical epsilon to the server, of each update: ")
    assert "beside 7.50 at most by the accountant, at delta 1e-05" in epsilon
    assert "no bound by the accountant" in said(found, None)[-1]


def test_failures_are_said_with_their_reason() -> None:
    broken = {**READ, "labels": {"error": "no classifier"}, "membership": [{"test": "t", "error": "the update is zero"}]}
    labels, membership = said(found_beside([broken], [], 1, 1e-5), None)
    assert labels == "Labels: none could be read (no classifier)."
    assert membership == "Membership by t: no figure (the update is zero)."
