from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.labels.forward import forward, natural_inputs, random_inputs, surrogate_inputs
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.observation import observe


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 5)
        self.body = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())

    def forward(self, x):
        return self.fc(self.body(x))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Normed()


def seen(model):
    spec = InputSpec((3, 4, 4), 5, (0.5,) * 3, (0.2,) * 3)
    return observe(model, torch.rand(4, 3, 4, 4), torch.arange(4), input=spec)


def test_features_and_probabilities_are_those_of_the_observed_parameters_in_eval_mode(model):
    observation = seen(model.eval())
    inputs = torch.rand(70, 3, 4, 4)
    with torch.no_grad():
        features, probabilities = model.body(inputs), model(inputs).softmax(1)
    result = forward(observation, Normed(), inputs)
    torch.testing.assert_close(result.features, features.double())
    torch.testing.assert_close(result.probabilities, probabilities.double(), rtol=1e-5, atol=1e-6)


def test_a_client_in_train_mode_is_followed_in_batchnorm_but_not_in_dropout(model):
    observation = seen(model.train())
    inputs = 3 + torch.rand(8, 3, 4, 4)
    twice = [forward(observation, model, inputs).features for _ in range(2)]
    torch.testing.assert_close(twice[0], twice[1], rtol=0, atol=0)
    model.body[3].eval()
    torch.testing.assert_close(twice[0], model.body(inputs).detach().double())


def test_received_weights_and_statistics_are_used_when_asked_for(model):
    observation = seen(model.eval())
    torch.manual_seed(1)
    other = Normed().eval()
    other.body[1].running_mean.fill_(0.3)
    weights = replace(
        observation, kind="weights", update=dict(other.named_parameters()), received_buffers=dict(other.named_buffers())
    )
    inputs = torch.rand(3, 3, 4, 4)
    torch.testing.assert_close(forward(weights, model, inputs, received=True).features, other.body(inputs).detach().double())


@pytest.mark.parametrize("mode", [True, False])
def test_model_and_observation_stay_as_they_are(model, mode):
    observation = seen(model.train(mode))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    buffers = {name: value.clone() for name, value in observation.buffers.items()}
    state = torch.random.get_rng_state()
    forward(observation, model, random_inputs(observation))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training == mode for module in model.modules())
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in observation.buffers.items())


@pytest.mark.parametrize("draw", [random_inputs, natural_inputs])
def test_draws_depend_on_round_and_client_only(model, draw):
    observation = seen(model)
    torch.manual_seed(5)
    assert torch.equal(draw(observation), draw(observation))
    assert not torch.equal(draw(observation), draw(replace(observation, client=1)))
    assert not torch.equal(draw(observation), draw(replace(observation, round=2)))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 96, 64)])
def test_natural_inputs_look_like_images_at_any_size(model, shape):
    channels = shape[0]
    spec = InputSpec(shape, 5, (0.4,) * channels, (0.25,) * channels)
    pixels = spec.denormalize(natural_inputs(replace(seen(model), input=spec)))
    assert pixels.shape == (128, *shape)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert 0.45 < pixels.mean() < 0.55
    assert 0.12 < pixels.std() < 0.4
    # Neighbours are alike: in white noise their difference has 1.4 times the deviation.
    assert (pixels[..., 1:] - pixels[..., :-1]).std() < 0.9 * pixels.std()


def test_surrogates_are_normalised_and_thinned_evenly(model):
    observation = seen(model)
    assert surrogate_inputs(observation) is None
    images = torch.linspace(0, 1, 1025).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    inputs = surrogate_inputs(replace(observation, surrogate=images))
    assert inputs.shape == (512, 3, 4, 4)
    assert inputs[0, 0, 0, 0] == pytest.approx(-2.5)
    assert inputs[-1, 0, 0, 0] == pytest.approx(2.5)


def test_a_classifier_that_reads_sequences_is_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(x.flatten(1, 2)).mean(dim=1)

    observation = seen(Tokens())
    with pytest.raises(AttackError, match="one vector"):
        forward(observation, Tokens(), random_inputs(observation))


def test_outputs_that_are_not_finite_are_refused(model):
    observation = seen(model)
    observation.parameters["fc.bias"].fill_(torch.nan)
    with pytest.raises(AttackError, match="not finite"):
        forward(observation, model, random_inputs(observation))
