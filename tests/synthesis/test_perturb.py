"""Visual perturbation: a share of the pictures, noise of the stated strength, text that stands out, all keyed."""

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from verl_steer.data.rows import RowError
from verl_steer.dialogue import ImageRef
from verl_steer.synthesis.config import PerturbConfig
from verl_steer.synthesis.perturb import perturb


def picture(colour=(90, 120, 150), size=(200, 120)):
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return ImageRef(out.getvalue())


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image.data)).convert("RGB"), dtype=float) / 255


def test_a_tenth_of_the_pictures_half_of_them_by_noise():
    done = Counter(perturb(picture(size=(20, 20)), PerturbConfig(), 1, f"row {n}")[1] for n in range(1500))
    # Binomial, 4 standard deviations: 150 +- 47 of 1500, then half +- 25.
    assert 103 <= done["noise"] + done["trigger"] <= 197 and abs(done["noise"] - done["trigger"]) <= 50


def test_the_same_row_gives_the_same_bytes_and_another_row_others():
    every = PerturbConfig(share=1.0)
    first = [perturb(picture(), every, 1, f"row {n}") for n in range(12)]
    assert first == [perturb(picture(), every, 1, f"row {n}") for n in range(12)]
    assert len({image.sha256 for image, _ in first}) == 12
    assert perturb(picture(), every, 2, "row 0") != first[0]


def test_noise_has_the_stated_strength():
    every = PerturbConfig(share=1.0, sigma=0.03)
    noisy = next(image for n in range(20) for image, done in [perturb(picture(), every, 1, f"{n}")] if done == "noise")
    difference = pixels(noisy) - pixels(picture())
    assert difference.std() == pytest.approx(0.03, rel=0.05) and abs(difference.mean()) < 0.001


@pytest.mark.parametrize(("colour", "ink"), [((20, 20, 30), 1.0), ((230, 230, 220), 0.0)])
def test_a_trigger_is_written_in_the_colour_that_stands_out(colour, ink):
    every = PerturbConfig(share=1.0, triggers=("STOP",))
    plain = picture(colour)
    places = set()
    for n in range(12):
        image, done = perturb(plain, every, 1, f"{n}")
        if done == "trigger":
            changed = np.abs(pixels(image) - pixels(plain)).max(-1) > 0.3
            assert 20 < changed.sum() < 0.1 * changed.size
            assert np.abs(pixels(image)[changed] - ink).min() < 0.05
            places.add(tuple(np.argwhere(changed)[0]))
    assert len(places) > 1


def test_no_share_leaves_the_bytes_alone_and_a_damaged_picture_is_named():
    assert perturb(picture(), PerturbConfig(share=0.0), 1, "row") == (picture(), "")
    with pytest.raises(RowError, match="picture is none of"):
        perturb(ImageRef(b"\x89PNG\r\n\x1a\nbroken"), PerturbConfig(share=1.0), 1, "row")
