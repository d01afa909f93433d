import numpy as np
import pytest

from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.ingestion.labels import read_boxes, read_labels
from chexspark.phantom import draw_phantom, write_release
from chexspark.storage import locate


def random():
    return np.random.Generator(np.random.PCG64(5))


@pytest.mark.parametrize("size", [64, 200])
@pytest.mark.parametrize("finding", FINDINGS)
def test_a_sign_is_seen_inside_its_box_and_nowhere_else(finding, size):
    healthy, _ = draw_phantom(size, [], random())
    ill, boxes = draw_phantom(size, [finding], NoisyAlike(random()))
    box = boxes[finding]
    top, left = int(box.y), int(box.x)
    inside = np.zeros((size, size), bool)
    inside[top : top + int(box.height), left : left + int(box.width)] = True
    difference = np.abs(ill.astype(float) - healthy)
    assert left >= 0 and left + box.width <= size and top >= 0 and top + box.height <= size
    assert difference[inside].mean() > 4 * max(1, difference[~inside].mean())


class NoisyAlike:
    """A generator whose draws for a sign's place leave the later draws as they were."""

    def __init__(self, generator):
        self.generator = generator

    def uniform(self, low, high, size=None):
        if size == 2 and low < 0:
            return np.zeros(2)
        return self.generator.uniform(low, high, size)

    def normal(self, *arguments):
        return self.generator.normal(*arguments)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_release(out=str(tmp_path / name), images=7, size=32, seed=seed)

    def content(name):
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        return [(p.name, p.read_bytes()) for p in files]

    assert content("a") == content("b") != content("c")


def test_the_release_has_nih_s_form(release):
    labels = read_labels(locate(str(release / "Data_Entry_2017.csv"))).rows
    boxes = read_boxes(locate(str(release / "BBox_List_2017.csv")), FINDINGS).rows
    assert len(labels) == 96
    lists = [(release / n).read_text().split() for n in ("train_val_list.txt", "test_list.txt")]
    assert sorted(lists[0] + lists[1]) == sorted(labels.image_index)
    patients = [{name.split("_")[0] for name in images} for images in lists]
    assert all(patients) and not patients[0] & patients[1]
    drawn = {
        (r.image_index, f)
        for r in labels.itertuples()
        for f, v in zip(FINDINGS, r.labels, strict=True)
        if v
    }
    assert drawn == set(zip(boxes.image_index, boxes.finding, strict=True))
    assert (release / "Data_Entry_2017.csv").read_text().splitlines()[1].endswith(",")


def test_a_folder_with_files_is_left_alone(release):
    with pytest.raises(UserError, match="has files in it already"):
        write_release(out=str(release), images=1)
