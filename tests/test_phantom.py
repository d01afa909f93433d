import numpy as np
import pandas as pd
import pytest

from chexspark.errors import UserError
from chexspark.findings import FINDINGS
from chexspark.ingestion.box_files import read_boxes
from chexspark.ingestion.duplicates import duplicate_pairs
from chexspark.ingestion.images import perceptual_hash
from chexspark.ingestion.labels import read_labels
from chexspark.phantom import SIDED, draw_anatomy, draw_phantom, generator, write_release
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


def hashes_of(phantoms):
    return [perceptual_hash(pixels) for pixels in phantoms]


@pytest.mark.parametrize("size", [32, 64])
def test_no_two_patients_look_alike_to_ingest(size):
    phantoms = [draw_phantom(size, [], generator(2, number))[0] for number in range(150)]
    names = [str(number) for number in range(150)]
    assert duplicate_pairs(names, names, list(range(150)), hashes_of(phantoms)) == []


def test_images_of_a_patient_are_more_alike_than_those_of_others():
    chests = []
    for patient in range(40):
        anatomy = draw_anatomy(generator(3, patient))
        chests.append([draw_phantom(64, [], generator(3, patient, i), anatomy)[0] for i in (1, 2)])
    correlation = np.corrcoef([chest.ravel() for pair in chests for chest in pair])
    same = correlation[np.arange(0, 80, 2), np.arange(1, 80, 2)]
    others = correlation[np.arange(0, 78, 2), np.arange(3, 80, 2)]
    assert np.median(same) > np.median(others) + 0.01 and (same < 0.999).all()


def test_a_healthy_phantom_is_laid_out_as_a_chest():
    for number in range(30):
        chest = draw_phantom(64, [], generator(4, number))[0].astype(float)
        lungs = (chest[22:38, 16:23].mean() + chest[22:38, 41:48].mean()) / 2
        spine, heart, corner = (
            chest[22:34, 30:34].mean(),
            chest[38:46, 33:37].mean(),
            chest[:8, :8].mean(),
        )
        assert corner < lungs < spine - 30 and heart > lungs + 50
        assert (chest == 255).mean() < 0.03, "hardly any of it is burnt out"


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


def labels_of(folder):
    """Finding → the images that a release's table says have it; and the images of its test list."""
    table = pd.read_csv(folder / "Data_Entry_2017.csv")
    found = table.set_index("Image Index")["Finding Labels"].str.get_dummies("|")
    return found[list(FINDINGS)], (folder / "test_list.txt").read_text().split()


def test_labels_for_training_are_turned_over_and_nothing_else_changes(tmp_path):
    plain, noisy = (
        write_release(out=str(tmp_path / name), images=300, size=32, label_noise=noise)
        for name, noise in (("plain", 0.0), ("noisy", 0.1))
    )
    (true, test), (given, same) = labels_of(tmp_path / "plain"), labels_of(tmp_path / "noisy")
    assert test == same and len(test) > 20
    assert given.loc[test].equals(true.loc[test])
    turned = (true != given).drop(test).to_numpy()
    assert turned.mean() == pytest.approx(0.1, abs=4 * (0.09 / turned.size) ** 0.5)
    for name in true.index[:20]:
        image = f"images/{name}"
        assert (plain / image).read_bytes() == (noisy / image).read_bytes()
    boxes = "BBox_List_2017.csv"
    assert (plain / boxes).read_bytes() == (noisy / boxes).read_bytes()


def test_a_lookalike_is_the_sign_on_the_other_side_and_has_no_label(tmp_path):
    folders = [tmp_path / "plain", tmp_path / "alike"]
    write_release(out=str(folders[0]), images=60, size=64)
    write_release(out=str(folders[1]), images=60, size=64, lookalikes=True)
    (true, _), (given, _) = (labels_of(folder) for folder in folders)
    assert given.equals(true)
    images = [
        {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
        for folder in folders
    ]
    changed = sum(images[0][name] != images[1][name] for name in images[0])
    assert 60 * (1 - 0.87**4) / 2 < changed < 60
    for finding in SIDED:
        chest, _ = draw_phantom(200, [], NoisyAlike(random()))
        sign, boxes = draw_phantom(200, [finding], NoisyAlike(random()))
        alike, none = draw_phantom(200, [], NoisyAlike(random()), lookalikes=[finding])
        assert not none
        columns = [np.abs(each.astype(float) - chest).sum(0) for each in (sign, alike)]
        middle = [(column * np.arange(200)).sum() / column.sum() for column in columns]
        assert middle[0] + middle[1] == pytest.approx(199, abs=12), finding
        assert boxes[finding].x < middle[0] < boxes[finding].x + boxes[finding].width
