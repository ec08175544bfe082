"""Trials look for what a sweep names in the folder where the sweep was started."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest


@pytest.mark.long
@pytest.mark.parametrize("launch", ["process", "train"])
def test_trials_find_a_users_own_data_and_a_relative_root_where_the_driver_does(
    tmp_path: Path, bitfront: Any, launch: str
) -> None:
    (tmp_path / "pixels").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "pixels" / "images.npy", images)
    (tmp_path / "my_places.py").write_text(
        dedent("""
        import numpy as np
        from trainables.data import UserData

        def small(root, *, image_size):
            images, labels = np.load(f"{root}/images.npy"), np.arange(24) % 3
            return UserData(train=(images[:16], labels[:16]), validation=(images[16:], labels[16:]), num_classes=3)
        """)
    )
    (tmp_path / "s.yaml").write_text(
        dedent(f"""
        name: s
        trials: 1
        network: {{name: resnet8}}
        data: {{name: "my_places:small", root: pixels, image_size: 16}}
        reference: {{epochs: 1, batch_size: 8}}
        method: {{name: edmips, epochs: 1, batch_size: 8}}
        finetune: {{epochs: 1, batch_size: 8}}
        evaluation: {{top_k: 4, batch_size: 8}}
        gallery: {{random: false}}
        space: {{method.zeta: {{fixed: 1.0}}}}
        resources: {{launch: {launch}}}
        """)
    )
    assert "1/1 done" in bitfront("run", "s.yaml")
