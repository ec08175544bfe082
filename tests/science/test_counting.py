"""Which layers read the same activation, and which activations are added, on networks whose answer is plain to see."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.bops import CostModel
from trainables.counting import measure
from trainables.errors import ConfigError, CoverageError
from trainables.models import build_network


def conv(channels: int = 4) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 1)


class Net(nn.Module):
    """Layers a, b, c … of four channels; what they read is the test's business."""

    def __init__(self, layers: str) -> None:
        super().__init__()
        for name in layers:
            self.add_module(name, conv())

    def groups(self, *, added: bool = False) -> set[frozenset[str]]:
        """Layers by the activation that they share."""
        work = measure(self, torch.randn(2, 4, 6, 6)).work
        found: dict[str, set[str]] = {}
        for name, layer in work.items():
            found.setdefault(layer.stream if added else layer.reads, set()).add(name)
        assert all(first == next(n for n in work if n in members) for first, members in found.items())
        return {frozenset(members) for members in found.values()}


def sets(text: str) -> set[frozenset[str]]:
    return {frozenset(word) for word in text.split()}


def test_layers_that_read_one_tensor_or_views_of_it_share_it() -> None:
    class Views(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            flat = y.flatten(2).unflatten(2, (6, 6))
            return self.b(y) + self.c(nn.Identity()(y)) + self.d(F.dropout(flat, training=self.training))

    assert Views("abcd").groups() == sets("a bcd")


def test_a_change_in_place_makes_another_activation() -> None:
    class Changed(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            out = self.b(y) + self.c(y)
            y.relu_()
            out = out + self.d(y)
            y.view(-1)[0] = 3.0
            return out + self.e(y)

    assert Changed("abcde").groups() == sets("a bc d e")


def test_memory_that_is_used_again_ties_nothing() -> None:
    class Chain(Net):
        def forward(self, x: Tensor) -> Tensor:
            memories = []
            for layer in self.children():
                x = layer(x)
                memories.append(x.untyped_storage()._cdata)
            # What is freed is handed out again, where and how often is the allocator's business: without, this
            # proves nothing.
            assert len(set(memories)) < len(memories)
            return x

    names = "abcdefghijklmnopqrstuvwxyz"
    assert Chain(names).groups() == sets(" ".join(names))


def test_a_layer_that_runs_again_unites_those_who_read_its_inputs() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            z = F.relu(self.b(y))
            return self.shared(y) + self.shared(z) + self.c(z)

        def __init__(self) -> None:
            super().__init__("abc")
            self.shared = conv()

    net = Twice()
    work = measure(net, torch.randn(2, 4, 6, 6)).work
    assert {name: layer.reads for name, layer in work.items()} == {"a": "a", "b": "b", "shared": "b", "c": "b"}
    assert (work["b"].inputs, work["shared"].inputs) == (4 * 36, 2 * 4 * 36)


def test_activations_that_are_added_are_one_stream_through_relu_and_identity() -> None:
    class Residual(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            x = F.relu(x + self.b(x), inplace=True)
            x += self.c(x)
            x = nn.Identity()(F.relu6(x, inplace=True))
            return self.e(F.avg_pool2d(x, 2) + F.avg_pool2d(self.d(x), 2))

    net = Residual("abcde")
    assert net.groups() == sets("a b c d e")
    # Pooling makes another activation, of which nobody but `e` reads.
    assert net.groups(added=True) == sets("a bcd e")


def test_what_is_not_a_sum_of_activations_keeps_streams_apart() -> None:
    class Apart(Net):
        def __init__(self) -> None:
            super().__init__("abcde")
            self.shift = nn.Parameter(torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = self.b(F.relu(y))
            z = self.c(z + self.shift) + 1
            z = self.d(z * torch.rand_like(z) + torch.ones(4, 1, 1))
            return self.e(torch.cat([z[:, :2], y[:, :2]], dim=1))

    assert Apart().groups(added=True) == sets("a b c d e")


def test_pythons_sum_of_a_list_is_a_sum() -> None:
    class Branches(Net):
        def forward(self, x: Tensor) -> Tensor:
            parts = [F.relu(self.a(x)), F.relu(self.b(x))]
            return self.c(parts[0]) + self.d(sum(parts))

    assert Branches("abcd").groups(added=True) == sets("ab cd")


def test_a_layer_called_by_keyword_is_counted() -> None:
    class Keyword(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(input=self.a(input=x))

    assert measure(Keyword("ab"), torch.randn(2, 4, 6, 6)).inputs == 2 * 4 * 36


@pytest.mark.parametrize(("name", "tied"), [("resnet18", 3), ("resnet50", 4), ("mobilenet_v2", 0)])
def test_a_downsampling_convolution_reads_what_its_block_reads(name: str, tied: int) -> None:
    work = measure(build_network(name, num_classes=10, image_size=32), torch.randn(1, 3, 32, 32)).work
    pairs = {layer: entry.reads for layer, entry in work.items() if entry.reads != layer}
    assert len(pairs) == tied
    assert all(layer == first.replace("conv1", "downsample.0") for layer, first in pairs.items())


def test_a_residual_stage_is_one_stream() -> None:
    work = measure(build_network("resnet18", num_classes=10, image_size=64), torch.randn(1, 3, 64, 64)).work
    stage = [name for name, layer in work.items() if layer.stream == "layer2.1.conv1"]
    assert stage == ["layer2.1.conv1", "layer3.0.conv1", "layer3.0.downsample.0"]


def test_costs_read_back_as_they_were_written() -> None:
    costs = measure(build_network("resnet8", num_classes=10, image_size=16), torch.randn(1, 3, 16, 16))
    content = costs.to_content()
    assert CostModel.from_content(content) == costs
    for change, message in (
        ({"float_entries": -1}, r"float_entries is -1; expected zero or a positive whole number"),
        ({"layers": []}, "'layers' must map"),
        ({"layers": {"a": {}}}, r"layer 'a': expected kind, macs, weights, inputs"),
        ({"layers": {**content["layers"], "fc": {**content["layers"]["fc"], "macs": 1.5}}}, r"'fc': macs is 1\.5"),
        ({"layers": {**content["layers"], "fc": {**content["layers"]["fc"], "kind": "pool"}}}, "'fc': kind is 'pool'"),
        ({"layers": {**content["layers"], "fc": {**content["layers"]["fc"], "reads": "z"}}}, "'fc' reads with 'z'"),
    ):
        with pytest.raises(ConfigError, match=message):
            CostModel.from_content({**content, **change})


def test_a_weight_that_is_computed_is_no_activation() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.linear(self.conv(images).mean((2, 3)), self.w * 2.0)

    with pytest.raises(CoverageError, match="outside of any Conv2d or Linear layer"):
        measure(Scaled(), torch.randn(2, 3, 8, 8))
