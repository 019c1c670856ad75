"""The launches of a training step as plain data: which kernel, over how many programs, with what.

Nothing in a plan depends on how many members are trained beside each other, so that each computes what it would alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pyvae.engine.fused.boxes import SIDES, BoxTile, Descriptor, box_tiles, descriptors, edge, maps
from pyvae.engine.fused.launch import (
    DTYPES,
    WINDOW,
    Argument,
    Buffer,
    Launch,
    Operands,
    Pointer,
    Size,
    Stride,
    Tiles,
    tiles_of,
)
from pyvae.engine.fused.layout import ALIGNMENT, Layout, padded, z_width
from pyvae.engine.fused.network import ENDS, SIDE, Dense, Network, Pair
from pyvae.engine.fused.tables import Gradient, Tile, blocks_of, dense_tiles, pair_tiles
from pyvae.engine.fused.weighting import Weighting
from pyvae.random import Stream

_WITHOUT_OPERANDS = ("batch_kernel", "kl_weight_kernel", "member_rows_kernel")


@dataclass
class Plan:
    """The step of a network on batches of ``images``, of bits or of bytes.

    Attributes:
        forward: from the batch to the latents, and to the loss, when the step's batch is there.
        backward: from the loss to the weights, and to the next step's batch.
        weigh: the weight of the KL, between latents and their backward, where it is no constant.
        settle: the end of a step: its row, the controller's state, the step counter.
        first: the batch of the step that is to come, when no step before has made it.
        buffers: by name, what each member needs.
        cut: ``tiles``; without them, those of the operands.
        gradients: by name of a parameter, where its parts lie in the buffer "gradients".
    """

    network: Network
    layout: Layout
    images: int
    operands: Operands
    bits: bool
    tiles: Tiles | None = None
    weighting: Weighting = field(default_factory=Weighting)
    before_norm: int = 0
    """Terms of a row beside those that all objectives have, before the norm of the gradient, and behind it."""
    behind_norm: int = 0
    pdl: bool = False
    side_branch: bool = False
    descriptors: bool = False
    """As :class:`pyvae.engine.fused.launch.Options`."""

    def __post_init__(self) -> None:
        p = padded(self.network.latents)
        self.cut = self.tiles or tiles_of(self.operands)
        self.buffers: dict[str, Buffer] = {}
        self.activations: dict[str, int] = {}
        self.gradients: dict[str, Gradient] = {}
        self.weight_tiles: list[Tile | BoxTile] = []
        self.boxes: list[Descriptor] = []
        self._size = self._gradient_size = 0
        self._lay_activations()
        encode = self._encode("batch", decodes=True)
        decode, loss_parts = self._decode()
        self.forward = [*encode, *decode]
        self.to_latents = len(encode)
        """Launches of ``forward`` after which mu, logvar and z are known."""
        backward = self._backward_decoder()
        self.backward_latents = len(backward)
        """The launch of ``backward`` that reads the weight of the KL, and other gradients at mu, logvar and z."""
        of_decoder, self.weight_tiles = self.weight_tiles, []
        backward += self._backward_encoder()
        backward += self._weight_gradients(of_decoder, at=self.backward_latents, launches=backward)
        self.blocks = blocks_of(
            self.layout.parameters, self.gradients, wide=self.cut.wide, columns=self.cut.columns
        )
        adam = self._adam()
        self.backward = [*backward, _serial(adam)._replace(joins=True) if self.side_branch else adam]
        self.first = [self._batch("batch", "ahead")]
        self.weigh = self._weigh()
        self.settle = [self._settle(loss_parts)]
        half = DTYPES[self.operands]
        self.buffers |= {
            "weights": Buffer(self.layout.width, half),
            "master": Buffer(self.layout.width, torch.float32),
            "exp_avg": Buffer(self.layout.width, torch.float32),
            "exp_avg_sq": Buffer(self.layout.width, torch.float32),
            "activations": Buffer(self._size, half),
            "gradients": Buffer(self._gradient_size, torch.float32),
            "batch": Buffer(self._batch_width, torch.int16 if self.bits else torch.uint8),
            "ahead": Buffer(WINDOW * self.images, torch.int64),
            "stats": Buffer(3 * self.images * p, torch.float32),
            "extra": Buffer(3 * self.images * p, torch.float32),
            "kl_parts": Buffer(self._latent_blocks * p, torch.float32),
            "nll_parts": Buffer(loss_parts, torch.float32),
            "squares": Buffer(len(self.blocks), torch.float32),
            "hyper": Buffer(8, torch.float32),
            "kl_weight": Buffer(1, torch.float32),
            "key": Buffer(2, torch.int64),
            "flags": Buffer(1, torch.int32),
            "found_inf": Buffer(1, torch.float32),
            "settings": Buffer(16, torch.float64),
            "control": Buffer(5, torch.float64),
            "moved_control": Buffer(5, torch.float64),
            "terms": Buffer(3 + self.before_norm + self.behind_norm, torch.float64),
        }

    def second(self) -> list[Launch]:
        """The latents of a second, independent batch, through the weights as they are: FactorVAE's."""
        self.buffers |= {
            "second_batch": self.buffers["batch"],
            "second_ahead": self.buffers["ahead"],
            "second_stats": self.buffers["stats"],
            "second_kl_parts": self.buffers["kl_parts"],
        }
        return [
            self._batch("second_batch", "second_ahead"),
            *self._encode("second_batch", decodes=False),
        ]

    # where things lie

    def _lay_activations(self) -> None:
        """Activations by the name of the layer that they leave, and gradients at its product by the same with a "'"."""
        network, pixels = self.network, self.network.channels * 4096
        if self.descriptors:
            self._lay_boxes()
        self._lay(network.first, self._maps(32, ENDS))
        for pair in network.down:
            self._lay_both(pair.name, self._maps(pair.side, pair.small))
        for dense in (*network.encode, *network.decode):
            self._lay_both(dense.name, dense.outputs)
        self._lay("z", z_width(network.latents))
        self._lay(f"{network.head}'", 2 * padded(network.latents))
        self._lay_both(network.decode_first, network.width_out)
        for pair in network.up:
            self._lay_both(pair.name, self._maps(2 * pair.side, pair.big))
        self._lay(f"{network.last}'", pixels)

    def _lay_both(self, name: str, size: int) -> None:
        self._lay(name, size)
        self._lay(f"{name}'", size)

    def _lay_boxes(self) -> None:
        """The maps of an encoder's pair and of its mirror image in the decoder side by side, for their descriptors."""
        network, block = self.network, self.cut.boxes_k
        for down, up, below, small in zip(
            network.down,
            network.up[::-1],
            (network.first, *self._names(network.down[:-1])),
            self._below(network.up),
            strict=True,
        ):
            if (down.side, down.big, down.small) != (up.side, up.big, up.small):
                raise ValueError("descriptors are for decoders whose maps are those of the encoder")
            big, small_too = (below, f"{up.name}'"), (f"{down.name}'", small)
            for name in big:
                self._lay(name, maps(2 * down.side, down.big))
            for name in small_too:
                self._lay(name, maps(down.side, down.small))
            self.boxes += descriptors(
                down,
                big=self.activations[big[0]],
                small=self.activations[small_too[0]],
                images=self.images,
                block=block,
            )

    def _maps(self, side: int, channels: int) -> int:
        return maps(side, channels) if self.descriptors else side**2 * channels

    def _edge(self, side: int) -> int:
        return edge(side) if self.descriptors else 0

    def _lay(self, name: str, size: int) -> None:
        if name in self.activations:
            return
        self.activations[name] = self._size
        self._size += -(-size * self.images // ALIGNMENT) * ALIGNMENT

    def _at(self, name: str) -> Pointer:
        return Pointer("activations", self.activations[name])

    def _weight(self, name: str) -> Pointer:
        return Pointer("weights", self.layout.parameters[f"{name}.weight"].offset)

    def _bias(self, name: str) -> Pointer:
        # never rounded
        return Pointer("master", self.layout.parameters[f"{name}.bias"].offset)

    def _parts(self, name: str, parts: int, stride: int | None = None) -> Pointer:
        """Room for the parts of the gradient of a parameter."""
        stride = stride or self.layout.parameters[name].size
        assert name not in self.gradients, name
        self.gradients[name] = Gradient(self._gradient_size, parts, stride)
        self._gradient_size += -(-parts * stride // ALIGNMENT) * ALIGNMENT
        return Pointer("gradients", self.gradients[name].offset)

    # the launches

    def _launch(
        self,
        label: str,
        kernel: tuple[str, str],
        programs: int,
        arguments: Sequence[Argument],
        constants: dict[str, Any],
        stages: int = 1,
        warps: int = 4,
    ) -> Launch:
        constants = constants | {"PDL": self.pdl}
        if kernel[1] not in _WITHOUT_OPERANDS:
            constants["TF32"] = self.operands == "tf32"
        return Launch(label, kernel, programs, tuple(arguments), tuple(constants.items()), warps, stages)

    def _image_constants(self) -> dict[str, Any]:
        return {"CHANNELS": self.network.channels, "BITS": self.bits}

    @property
    def _batch_width(self) -> int:
        return self.images * (1024 if self.bits else self.network.channels * 4096)

    def _batch(self, buffer: str, ahead: str) -> Launch:
        return self._launch(
            "batch",
            ("conv_ends", "batch_kernel"),
            self._batch_width // self.cut.batch,
            [
                *(Pointer("store"), Pointer(ahead), Pointer("key"), Pointer(buffer), self.images),
                *_strides(ahead, buffer),
            ],
            {"WINDOW": WINDOW, **self._image_constants(), "BLOCK": self.cut.batch},
        )

    def _encode(self, batch: str, *, decodes: bool) -> list[Launch]:
        network, tiles = self.network, self.cut
        launches = [
            self._launch(
                f"{network.first} forward",
                ("conv_ends", "first_conv_kernel"),
                self.images * 1024 // tiles.first_conv,
                [
                    *(Pointer(batch), self._weight(network.first), self._bias(network.first)),
                    self._at(network.first),
                    *_strides(batch, "weights", "master", "activations"),
                ],
                {**self._image_constants(), "EDGE": self._edge(32), "BM": tiles.first_conv},
            )
        ]
        at = network.first
        for pair in network.down:
            launches.append(self._down(pair, at, pair.name))
            at = pair.name
        for dense in network.encode:
            launches.append(self._dense(dense, at, dense.name))
            at = dense.name
        launches.append(self._latents(at, batch, decodes=decodes))
        return launches

    def _decode(self) -> tuple[list[Launch], int]:
        network, tiles = self.network, self.cut
        launches, at = [], network.decode_first
        for dense in network.decode:
            launches.append(self._dense(dense, at, dense.name))
            at = dense.name
        for pair in network.up:
            launches.append(self._up(pair, at, pair.name))
            at = pair.name
        blocks = -(-self.images * 256 // tiles.loss)
        parts = blocks * network.channels
        sums = self._parts(f"{network.last}.bias", blocks, 16)
        pixels = self._at(f"{network.last}'")
        launches.append(
            self._launch(
                f"{network.last} forward, loss",
                ("conv_ends", "loss_kernel"),
                parts,
                [
                    *(Pointer("batch"), self._at(at), self._weight(network.last), self._bias(network.last)),
                    *(pixels, Pointer("nll_parts"), sums, Pointer("flags")),
                    self.images * 256,
                    *_strides("batch", "activations", "weights", "master", "activations"),
                    *_strides("nll_parts", "gradients"),
                ],
                {**self._image_constants(), "EDGE": self._edge(32), "BM": tiles.loss},
                stages=tiles.loss_stages,
            )
        )
        return launches, parts

    def _backward_decoder(self) -> list[Launch]:
        network, tiles = self.network, self.cut
        above = network.up[-1].name
        tile = tiles.loss_backward
        # more rows would not fit the registers of cards without wgmma
        if network.channels > 1 and self.operands != "fp32":
            tile = min(tile, 64 if self.operands == "tf32" else 128)
        programs = self.images * 1024 // tile
        launches = [
            self._launch(
                f"{network.last} backward",
                ("conv_ends", "loss_backward_kernel"),
                programs,
                [
                    *(self._at(above), self._weight(network.last), self._at(f"{network.last}'")),
                    *(self._at(f"{above}'"), self._parts(f"{network.last}.weight", programs)),
                    *(self._parts(f"{above}.bias", programs), Pointer("flags")),
                    *_strides("activations", "weights", "activations", "gradients", "gradients"),
                ],
                {"CHANNELS": network.channels, "EDGE": self._edge(32), "BM": tile},
            )
        ]
        for pair, below in zip(reversed(network.up), self._below(network.up), strict=True):
            self._pair_gradient(pair, big=f"{pair.name}'", small=below)
            launches.append(self._down(pair, f"{pair.name}'", below, gated=True))
        inputs = [network.decode_first, *(dense.name for dense in network.decode[:-1])]
        for dense, below in zip(reversed(network.decode), reversed(inputs), strict=True):
            self._dense_gradient(dense.name, below, f"{dense.name}'", dense.inputs, dense.outputs)
            launches.append(self._dense(dense, f"{dense.name}'", below, gated=True))
        first = network.decode_first
        # the one weight whose rows are outputs
        self._dense_gradient(first, f"{first}'", "z", network.width_out, z_width(network.latents))
        return launches

    def _backward_encoder(self) -> list[Launch]:
        network, p = self.network, padded(self.network.latents)
        last = network.encode[-1].name
        self._dense_gradient(network.head, last, f"{network.head}'", network.width_in, 2 * p)
        launches = [self._latents_backward(last)]
        inputs = [network.down[-1].name, *(dense.name for dense in network.encode[:-1])]
        for dense, below in zip(reversed(network.encode), reversed(inputs), strict=True):
            self._dense_gradient(dense.name, below, f"{dense.name}'", dense.inputs, dense.outputs)
            launches.append(self._dense(dense, f"{dense.name}'", below, gated=True))
        for pair, below in list(zip(network.down, (network.first, *self._names(network.down)), strict=False))[
            ::-1
        ]:
            self._pair_gradient(pair, big=below, small=f"{pair.name}'")
            if below == network.first:
                launches.append(self._up_first_conv(pair))
            else:
                launches.append(self._up(pair, f"{pair.name}'", below, gated=True))
        return launches

    @staticmethod
    def _names(pairs: Sequence[Pair]) -> list[str]:
        return [pair.name for pair in pairs]

    def _below(self, up: Sequence[Pair]) -> list[str]:
        """What the transposed convolutions read, the last one's first."""
        return [*self._names(up)[-2::-1], self.network.decode[-1].name]

    def _down(self, pair: Pair, big: str, small: str, *, gated: bool = False) -> Launch:
        """``gated``: the data gradient of a transposed convolution, at the product whose ReLU is ``small``."""
        tiles = self.cut
        rows = self.images * pair.side**2
        at = pair.side.bit_length() - 3
        tile, warps = tiles.down[at], tiles.down_warps[at]
        if (
            max(pair.big, pair.small) > 32
        ):  # of more, two programs would not fit the shared memory of every card
            tile, warps = min(tile, 32), 4
        programs = -(-rows // tile)
        features, sums, out = 0, Pointer("gradients"), small
        if gated:
            out = f"{small}'"
            shared = [dense for dense in self.network.decode if dense.name == small and not dense.shared]
            if shared:  # a bias for each pixel of it
                features = pair.side**2 * pair.small
            sums = self._parts(f"{small}.bias", programs)
        return self._launch(
            f"{pair.name} {'data gradient' if gated else 'forward'}",
            ("conv_pair", "conv_down_kernel"),
            programs,
            [
                *(self._at(big), self._weight(pair.name), self._bias(pair.name), self._at(small)),
                *(self._at(out), sums, rows),
                *_strides("activations", "weights", "master", "activations", "gradients"),
            ],
            {
                "H": pair.side,
                "CB": pair.big,
                "CS": pair.small,
                "TAPS": pair.taps,
                "BM": tile,
                "BK": min(128, pair.taps * pair.big),
                "GATED": gated,
                "FEATURES": features,
                "EDGE": self._edge(2 * pair.side),
            },
            stages=tiles.stages,
            warps=warps,
        )

    def _up(self, pair: Pair, small: str, big: str, *, gated: bool = False) -> Launch:
        """``gated``: the data gradient of a convolution, at the product whose ReLU is ``big``."""
        tiles = self.cut
        rows = self.images * pair.side**2
        at = pair.side.bit_length() - 3
        tile, warps = tiles.up[at], tiles.up_warps[at]
        if max(pair.big, pair.small) > 32:  # more rows would not fit the registers of cards without wgmma
            tile, warps = min(tile, 32 if min(pair.big, pair.small) > 32 else 64), 4
        programs = 4 * -(-rows // tile)
        sums = self._parts(f"{big}.bias", programs) if gated else Pointer("gradients")
        return self._launch(
            f"{pair.name} {'data gradient' if gated else 'forward'}",
            ("conv_pair", "conv_up_kernel"),
            programs,
            [
                *(self._at(small), self._weight(pair.name), self._bias(pair.name), self._at(big)),
                *(self._at(f"{big}'" if gated else big), sums, rows),
                *_strides("activations", "weights", "master", "activations", "gradients"),
            ],
            {
                "H": pair.side,
                "CB": pair.big,
                "CS": pair.small,
                "TAPS": pair.taps,
                "BM": tile,
                "GATED": gated,
                "EDGE": self._edge(2 * pair.side),
            },
            warps=warps,
        )

    def _up_first_conv(self, pair: Pair) -> Launch:
        network, tile = self.network, self.cut.up_first_conv
        programs = self.images * 256 // tile
        first = network.first
        return self._launch(
            f"{pair.name} data gradient, {first} weight gradient",
            ("conv_ends", "up_first_conv_kernel"),
            programs,
            [
                *(Pointer("batch"), self._weight(first), self._bias(first), self._weight(pair.name)),
                *(self._at(f"{pair.name}'"), self._parts(f"{first}.weight", programs)),
                *(self._parts(f"{first}.bias", programs), Pointer("flags"), self.images * 256),
                *_strides("batch", "weights", "master", "weights", "activations", "gradients", "gradients"),
            ],
            {**self._image_constants(), "EDGE": self._edge(16), "BM": tile},
            # loads of bytes, ahead, would be copies of 4 of them
            stages=self.cut.up_first_conv_stages if self.bits else 1,
        )

    def _dense(self, dense: Dense, x: str, y: str, *, gated: bool = False) -> Launch:
        """``gated``: its data gradient, at the product whose ReLU is ``y``."""
        tiles = self.cut
        inputs, outputs = (dense.outputs, dense.inputs) if gated else (dense.inputs, dense.outputs)
        period = outputs // SIDE**2 if dense.shared and not gated else outputs
        columns, k = min(tiles.dense_columns, period), min(tiles.dense_k, inputs)
        blocks = -(-self.images // tiles.dense)
        sums = Pointer("gradients")
        if gated:
            bias = self.layout.parameters[f"{y}.bias"].size
            # of maps, whose pixels share it
            sums = self._parts(f"{y}.bias", blocks * outputs // bias)
        return self._launch(
            f"{dense.name} {'data gradient' if gated else 'forward'}",
            ("dense", "dense_kernel"),
            blocks * outputs // columns,
            [
                *(self._at(x), self._weight(dense.name), self._bias(dense.name), self._at(y)),
                *(self._at(f"{y}'" if gated else y), sums, self.images),
                *_strides("activations", "weights", "master", "activations", "gradients"),
            ],
            {
                "K": inputs,
                "N": outputs,
                "PERIOD": period,
                "BM": tiles.dense,
                "BN": columns,
                "BK": k,
                "TRANSPOSED": gated,
                "GATED": gated,
            },
            stages=tiles.stages,
        )

    def _latents(self, x: str, batch: str, *, decodes: bool) -> Launch:
        network = self.network
        head, first = network.head, network.decode_first
        prefix = batch.removesuffix("batch")
        return self._launch(
            f"{head} forward, latents" + (f", {first} forward" if decodes else ""),
            ("latents", "latents_kernel"),
            self._latent_blocks,
            [
                *(self._at(x), self._weight(head), self._bias(head), self._weight(first), self._bias(first)),
                *(Pointer("key"), Pointer(f"{prefix}stats"), self._at("z"), Pointer(f"{prefix}kl_parts")),
                *(self._at(first), Pointer("flags"), self.images, network.latents),
                *_strides("activations", "weights", "master", "weights", "master"),
                *_strides(f"{prefix}stats", "activations", f"{prefix}kl_parts", "activations"),
            ],
            {
                **self._latent_constants(),
                "STREAM": int(Stream.POSTERIOR if decodes else Stream.SECOND_POSTERIOR),
                "DECODES": decodes,
            },
        )

    def _latents_backward(self, x: str) -> Launch:
        network, blocks = self.network, self._latent_blocks
        head, first = network.head, network.decode_first
        return self._launch(
            f"{first} data gradient, latents backward, {head} data gradient",
            ("latents", "latents_backward_kernel"),
            blocks,
            [
                *(self._at(f"{first}'"), self._weight(first), self._weight(head), Pointer("stats")),
                *(Pointer("extra"), Pointer("key"), Pointer("kl_weight"), self._at(x)),
                *(self._at(f"{head}'"), self._at(f"{x}'"), self._parts(f"{head}.bias", blocks)),
                *(self._parts(f"{x}.bias", blocks), self.images, network.latents),
                *_strides("activations", "weights", "weights", "stats", "activations", "activations"),
                *_strides("gradients", "gradients"),
            ],
            {
                **self._latent_constants(),
                "STREAM": int(Stream.POSTERIOR),
                "EXTRA": self.weighting.kind == "seam",
            },
            warps=self.cut.latents_backward_warps,
        )

    def _latent_constants(self) -> dict[str, Any]:
        network, tiles = self.network, self.cut
        return {
            "BM": tiles.latents,
            "K": network.width_in,
            "N": network.width_out,
            "P": padded(network.latents),
            "Z": z_width(network.latents),
            "BK": min(tiles.latents_k, network.width_in, network.width_out),
            "BN": min(tiles.latents_columns, network.width_in, network.width_out),
        }

    # weight gradients and Adam

    def _pair_gradient(self, pair: Pair, *, big: str, small: str) -> None:
        positions, name = self.images * pair.side**2, f"{pair.name}.weight"
        size = self.layout.parameters[name].size
        for (first, count), out in self._split(name, positions, size):
            if self.descriptors:
                image = 0 if pair in self.network.down else self.images
                self.weight_tiles += box_tiles(
                    pair, out=out, image=image, first=first, positions=count, block=self.cut.boxes_k
                )
                continue
            a, b = self.activations[big], self.activations[small]
            self.weight_tiles += pair_tiles(pair, big=a, small=b, out=out, first=first, positions=count)

    def _dense_gradient(self, name: str, a: str, b: str, inputs: int, outputs: int) -> None:
        at = {"a": self.activations[a], "b": self.activations[b]}
        for (first, count), out in self._split(f"{name}.weight", self.images, inputs * outputs):
            self.weight_tiles += dense_tiles(inputs, outputs, **at, out=out, first=first, images=count)

    def _split(self, name: str, positions: int, size: int) -> list[tuple[tuple[int, int], int]]:
        """Positions of each part of a weight gradient, first and how many, and where the part begins."""
        most = self.cut.positions
        firsts = range(0, positions, most)
        out = self._parts(name, len(firsts)).offset
        return [
            ((first, min(most, positions - first)), out + part * size) for part, first in enumerate(firsts)
        ]

    def _weight_gradients(
        self, of_decoder: list[Tile | BoxTile], *, at: int, launches: list[Launch]
    ) -> list[Launch]:
        """The launch before Adam; one for the decoder alone, if there is one, is put into ``launches`` at ``at``."""
        # those of most positions first, so that none of them is the last to begin
        if not self.side_branch:
            self.weight_tiles = sorted([*of_decoder, *self.weight_tiles], key=_order)
            return [self._tiles_launch("weight gradients", 0, len(self.weight_tiles))]
        both = [sorted(tiles, key=_order) for tiles in (of_decoder, self.weight_tiles)]
        self.weight_tiles = [*both[0], *both[1]]
        first = self._tiles_launch("weight gradients of the decoder", 0, len(both[0]))
        # neither of two launches that are followed by the other, nor who waits for both, may begin early
        launches.insert(at, _serial(first)._replace(branch=1))
        launches[at + 1] = _serial(launches[at + 1])
        self.backward_latents += 1
        return [self._tiles_launch("weight gradients of the encoder", len(both[0]), len(both[1]))]

    def _tiles_launch(self, label: str, first: int, count: int) -> Launch:
        kernel = "descriptor_gradients" if self.descriptors else "weight_gradients"
        arguments: list[Argument] = [
            *self.boxes,
            *(Pointer("activations"), Pointer("tiles"), Pointer("gradients"), Pointer("flags"), first),
        ]
        constants = {"BK": self.cut.positions_k}
        if self.descriptors:
            tiles = self.weight_tiles[first : first + count]
            sides = [tile.side for tile in tiles if isinstance(tile, BoxTile)]
            arguments += [sum(side >= least for side in sides) for least in SIDES]
            constants |= {"BOX": self.cut.boxes_k, "STAGES": self.cut.box_stages}
        return self._launch(
            label,
            (kernel, f"{kernel}_kernel"),
            count,
            [*arguments, *_strides("activations", "gradients")],
            constants,
            # beside boxes, of the dense layers' loops
            stages=self.cut.stages - 1 if self.descriptors else self.cut.positions_stages,
        )

    def _adam(self) -> Launch:
        tiles = self.cut
        return self._launch(
            "Adam, next batch",
            ("flat_adam", "flat_adam_kernel"),
            len(self.blocks) + self._batch_width // tiles.batch,
            [
                *(Pointer("gradients"), Pointer("blocks"), Pointer("master"), Pointer("exp_avg")),
                *(
                    Pointer("exp_avg_sq"),
                    Pointer("weights"),
                    Pointer("hyper"),
                    Pointer("key"),
                    Pointer("flags"),
                ),
                *(Pointer("squares"), Pointer("store"), Pointer("ahead"), Pointer("batch")),
                *(len(self.blocks), 1 / self.images, self.images),
                *_strides("gradients", "master", "ahead", "batch"),
            ],
            {
                "WIDE": tiles.wide,
                "PARTS": tiles.parts,
                "COLUMNS": tiles.columns,
                "WINDOW": WINDOW,
                **self._image_constants(),
                "BLOCK": tiles.batch,
            },
        )

    # the weight of the KL and the end of the step

    @property
    def _latent_blocks(self) -> int:
        return -(-self.images // self.cut.latents)

    def _weigh(self) -> list[Launch]:
        weighting, p = self.weighting, padded(self.network.latents)
        if weighting.kind in ("constant", "seam"):
            return []
        return [
            self._launch(
                "weight of the KL",
                ("kl_weight", "kl_weight_kernel"),
                1,
                [
                    *(Pointer("kl_parts"), Pointer("key"), Pointer("settings"), Pointer("control")),
                    *(Pointer("moved_control"), Pointer("kl_weight"), Pointer("terms"), self._latent_blocks),
                    *_strides("kl_parts", "terms"),
                ],
                {"KIND": weighting.kind, "P": p, **weighting.options._asdict()},
            )._replace(warps=1, fused_multiply_add=False)
        ]

    def _settle(self, nll_parts: int) -> Launch:
        kind = self.weighting.kind
        return self._launch(
            "row, step counter",
            ("member_rows", "member_rows_kernel"),
            1,
            [
                *(Pointer("nll_parts"), Pointer("kl_parts"), Pointer("squares"), Pointer("kl_weight")),
                *(
                    Pointer("terms"),
                    Pointer("flags"),
                    Pointer("found_inf"),
                    Pointer("bad_step"),
                    Pointer("key"),
                ),
                *(Pointer("row"), Pointer("bad_row"), Pointer("ring"), Pointer("control")),
                *(Pointer("moved_control"), nll_parts, self._latent_blocks, len(self.blocks), self.images),
                *(self.network.latents, Size("every"), Size("capacity")),
                *_strides("nll_parts", "kl_parts", "squares"),
            ],
            {
                "P": padded(self.network.latents),
                "CONSTANT": kind == "constant",
                "CONTROLLED": kind == "control",
                "EXTRA": self.before_norm,
                "BEHIND": self.behind_norm,
                "BLOCK": 1024,
            },
        )


def _order(tile: Tile | BoxTile) -> tuple[int, int]:
    """Those of most positions first; boxes by their descriptors, whose positions fall with the side."""
    return (-tile.side, -tile.blocks) if isinstance(tile, BoxTile) else (0, -tile.count)


def _serial(launch: Launch) -> Launch:
    """A launch that begins when all before it have ended, as usual."""
    return launch._replace(constants=tuple((n, False if n == "PDL" else v) for n, v in launch.constants))


def _strides(*buffers: str) -> tuple[Stride, ...]:
    return tuple(Stride(buffer) for buffer in buffers)
