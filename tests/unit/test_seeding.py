from engine.seeding import ShuffledBatches


def test_batches_are_a_permutation_that_depends_on_seed_and_epoch():
    batches = ShuffledBatches(10, 4, seed=0)
    first = list(batches)
    assert [len(batch) for batch in first] == [4, 4, 2] and len(batches) == 3
    assert sorted(index for batch in first for _, index in batch) == list(range(10))
    assert list(batches) == first and list(ShuffledBatches(10, 4, seed=1)) != first
    batches.epoch = 1
    second = list(batches)
    assert [i for batch in second for _, i in batch] != [i for batch in first for _, i in batch]
    batches.start = 2
    assert list(batches) == second[2:]


def test_ranks_share_the_batches_of_one():
    """9 images, 4 a batch: the last one has a single image, and index 9, no image, for the second rank."""
    alone = list(ShuffledBatches(9, 4, seed=0))
    shards = [list(ShuffledBatches(9, 2, seed=0, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [len(batch) for batch in shards[0]] == [len(batch) for batch in shards[1]] == [2, 2, 1]
    for whole, *parts in zip(alone, *shards, strict=True):
        assert sorted(whole) == sorted(key for part in parts for key in part if key[1] != 9)
    assert shards[1][2] == [(0, 9)]


def test_the_place_of_an_image_that_is_left_out_stays_empty():
    """On every rank; a batch with nothing left has the item that stands for no image."""
    whole = list(ShuffledBatches(9, 2, seed=0, rank=1, world_size=2))
    lost = {whole[0][1][1], *(index for _, index in whole[1])}
    batches = ShuffledBatches(9, 2, seed=0, rank=1, world_size=2, left_out=lost)
    assert list(batches) == [whole[0][:1], [(0, 9)], whole[2]]
    assert batches.indices(0, 9) == [index for index in batches.order() if index not in lost]
    assert len(batches.indices(0, 4)) == 3 and len(batches.indices(4, 4)) == 2
