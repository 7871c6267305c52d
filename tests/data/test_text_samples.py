import numpy as np

from fedleak.data.base import sources
from fedleak.data.federated import federated_data
from fedleak.modalities.text.coding import decode
from fedleak.modalities.text.measure import PUBLIC
from fedleak.scenario.schema import Data


def test_sixty_four_passages_of_four_kinds_and_sixteen_public_ones():
    source = sources.get("text-samples")(Data(source="text-samples", max_tokens=200))
    assert np.bincount(source.train.labels).tolist() == [16] * 4
    assert np.bincount(source.test.labels).tolist() == [4] * 4
    texts = [decode(row) for split in (source.train, source.test) for row in split.load(range(len(split))).tolist()]
    assert len(set(texts)) == 80
    assert all(60 <= len(text.encode()) <= 196 for text in texts)  # none is cut


def test_a_federation_of_them_is_split_and_tells_what_is_public():
    data = federated_data(Data(source="text-samples", max_tokens=32), 4, 0)
    assert data.input.modality == "text"
    assert data.input.shape == (32,)
    assert data.images([0, 1]).shape == (2, 32)
    assert data.public()[PUBLIC].shape == (16, 32)
    assert sorted(index for shard in data.shards for index in shard) == list(range(64))
    data.verify()
