from fedleak.data.samples import foolbox_images
from fedleak.data.samples_imagenet import SamplesImageNet
from fedleak.scenario.schema import Data


def test_names_keep_the_imagenet_index():
    source = SamplesImageNet(Data())
    _, indices = foolbox_images("imagenet")
    assert [source.class_names[label] for label in source.train.labels] == [f"imagenet-{index}" for index in indices]
    assert len(source.class_names) == 19
    assert [int(name.split("-")[1]) for name in source.class_names] == sorted(set(indices))


def test_size_is_64_unless_given():
    assert SamplesImageNet(Data()).train.load([0]).shape == (1, 3, 64, 64)
    assert SamplesImageNet(Data(image_size=32)).train.load([0]).shape == (1, 3, 32, 32)
