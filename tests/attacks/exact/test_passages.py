from dataclasses import replace

import torch
from torch import nn

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.passages import promised
from fedleak.data.text_samples import TextSamples
from fedleak.modalities.text import TokenSpec
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, Observation
from fedleak.scenario.schema import Data, Model

SPEC = TokenSpec((200,), 4)


def bert(**parameters):
    return build_model(Model(name="bert", **parameters), SPEC, seed=1)


def seen(model, indices, kind="gradient", steps=1):
    train = TextSamples(Data(source="text-samples", max_tokens=200)).train
    tokens, labels = train.load(indices), torch.from_numpy(train.labels[indices])
    sent = {name: value.detach().clone() for name, value in model.named_parameters()}
    local = LocalTraining(len(indices), len(indices), steps=steps, epochs=steps, learning_rate=0.01)
    if kind == "gradient":
        nn.functional.cross_entropy(model(tokens), labels).backward()
        update = {name: value.grad for name, value in model.named_parameters()}
        update = {name: torch.zeros_like(sent[name]) if value is None else value for name, value in update.items()}
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(tokens), labels).backward()
            optimizer.step()
        update = {name: value.detach().clone() for name, value in model.named_parameters()}
    return Observation(kind, sent, update, SPEC, local=local), tokens, labels


def attack(observation, model):
    return attacks.get("closed-form")()([observation], model)[0]


def test_passage_and_label_come_with_their_certificate():
    model = bert()
    observation, tokens, labels = seen(model, [20])
    result = attack(observation, model)
    assert torch.equal(result.images, tokens)
    assert result.labels == tuple(labels.tolist())
    assert result.flags == ()
    assert "off whole numbers at most" in result.method


def test_sixteen_steps_with_momentum_are_as_one():
    model = bert()
    observation, tokens, labels = seen(model, [33], "weights", 16)
    result = attack(observation, model)
    assert torch.equal(result.images, tokens)
    assert result.labels == tuple(labels.tolist())


def test_what_weight_decay_took_is_given_back():
    model = bert()
    observation, tokens, _ = seen(model, [33], "weights", 4)
    kept = 1 - 0.001
    decayed = {name: value - (1 - kept) * observation.parameters[name] for name, value in observation.update.items()}
    path = {"name": "sgd", "weight_decay": 1.0}
    local = LocalTraining(1, 1, steps=1, epochs=1, learning_rate=0.001, optimizer=path)
    result = attack(replace(observation, update=decayed, local=local), model)
    assert torch.equal(result.images, tokens)
    assert result.flags == ()


def test_two_passages_are_refused():
    model = bert()
    result = attack(seen(model, [1, 50])[0], model)
    assert result.error == "the closed form reads one passage, but 2 are behind the update"


def test_a_zero_update_says_nothing():
    model = bert()
    observation = seen(model, [1])[0]
    observation.update["embeddings.word_embeddings.weight"].zero_()
    assert "is zero: it says nothing" in attack(observation, model).error


def test_what_is_promised_counts_places_and_features():
    assert promised(bert(), SPEC, 1).endswith("200 places, 256 features: each token at its place")
    assert promised(bert(dim=64), SPEC, 1).endswith("not every place: there are more than features")
    assert promised(bert(), SPEC, 2).startswith("nothing: it reads one passage")
    assert promised(nn.Sequential(nn.Embedding(260, 8), nn.Flatten(), nn.Linear(1600, 4)), SPEC, 1).startswith(
        "nothing: this network"
    )
