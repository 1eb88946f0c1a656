import pytest

from datasets import decode, images


@pytest.mark.real_data
def test_every_real_photo_decodes(real_data):
    for part, count in (("train", 331), ("val", 111), ("named", 3)):
        names = images.list_files(real_data / "pets" / part)
        assert len(names) == count
        assert decode.undecodable(real_data / "pets" / part, names) == {}
