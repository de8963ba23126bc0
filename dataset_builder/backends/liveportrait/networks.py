"""The networks of LivePortrait (Guo et al., 2407.03168), with the names of the official state dicts.

    AppearanceFeatureExtractor  F  picture -> feature volume
    MotionExtractor             M  picture -> head pose, expression and key points
    WarpingNetwork              W  feature volume, source and driving key points -> warped feature
    SPADEDecoder                G  warped feature -> picture
    StitchingNetwork            S  source and driving key points -> correction that keeps the shoulders still

Shapes: B pictures, K key points, volumes (B, C, D, H, W). Each class names the file of the original that it follows
(KwaiVGI/LivePortrait 1986663, MIT). All are for inference: call `eval()`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """Convolution, batch norm, leaky ReLU; `resize` comes before (up) or after (down). src/modules/util.py.

    dims: 2 or 3; in 3 dimensions `resize` leaves the depth alone. slope: of the negative side; 0 is ReLU.
    """

    def __init__(self, dims: int, channels_in: int, channels_out: int, resize: str = "", slope: float = 0.0):
        super().__init__()
        convolution, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        self.conv = convolution(channels_in, channels_out, 3, padding=1)
        self.norm = norm(channels_out)
        self.factor = (1, 2, 2)[3 - dims :]
        self.resize, self.slope = resize, slope

    def forward(self, x: Tensor) -> Tensor:
        if self.resize == "up":
            x = F.interpolate(x, scale_factor=tuple(float(f) for f in self.factor), mode="nearest")
        x = F.leaky_relu(self.norm(self.conv(x)), self.slope)
        if self.resize == "down":
            x = F.avg_pool2d(x.flatten(1, -3), 2).unflatten(1, x.shape[1:-2])  # channels and depth alike
        return x


class ResBlock3d(nn.Module):
    """x + (norm, ReLU, convolution) twice. src/modules/util.py."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm3d(channels)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(out)))


class AppearanceFeatureExtractor(nn.Module):
    """src/modules/appearance_feature_extractor.py."""

    def __init__(
        self,
        image_channel: int = 3,
        block_expansion: int = 64,
        num_down_blocks: int = 2,
        max_features: int = 512,
        reshape_channel: int = 32,
        reshape_depth: int = 16,
        num_resblocks: int = 6,
    ):
        super().__init__()
        widths = [min(max_features, block_expansion * 2**i) for i in range(num_down_blocks + 1)]
        self.volume = (reshape_channel, reshape_depth)
        self.first = ConvNorm(2, image_channel, block_expansion)
        self.down_blocks = nn.ModuleList(ConvNorm(2, a, b, "down") for a, b in zip(widths, widths[1:], strict=False))
        self.second = nn.Conv2d(widths[-1], max_features, 1)
        self.resblocks_3d = nn.Sequential()
        for i in range(num_resblocks):
            self.resblocks_3d.add_module(f"3dr{i}", ResBlock3d(reshape_channel))

    def forward(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) in [0, 1] -> (B, 32, 16, H/4, W/4)."""
        x = self.first(image)
        for block in self.down_blocks:
            x = block(x)
        return self.resblocks_3d(self.second(x).unflatten(1, self.volume))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GRN(nn.Module):
    """Global response normalisation of (B, H, W, C). Woo et al., 2301.00808, equations 1-3."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(dim=(1, 2), keepdim=True)
        return self.gamma * (x * response / (response.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class ConvNeXtBlock(nn.Module):
    """src/modules/convnextv2.py."""

    def __init__(self, channels: int):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.grn = GRN(4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pwconv1(self.norm(self.dwconv(x).movedim(1, -1)))
        return x + self.pwconv2(self.grn(F.gelu(out))).movedim(-1, 1)


class ConvNeXtV2(nn.Module):
    """ConvNeXt V2 (tiny by default) with one head per quantity. src/modules/convnextv2.py."""

    def __init__(
        self,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        num_kp: int = 21,
        num_bins: int = 66,
    ):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), ChannelNorm(dims[0], eps=1e-6))
        self.downsample_layers = nn.ModuleList([stem])
        for a, b in zip(dims, dims[1:], strict=False):
            self.downsample_layers.append(nn.Sequential(ChannelNorm(a, eps=1e-6), nn.Conv2d(a, b, 2, stride=2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(dim) for _ in range(depth))) for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.fc_kp = nn.Linear(dims[-1], 3 * num_kp)
        self.fc_scale = nn.Linear(dims[-1], 1)
        self.fc_pitch = nn.Linear(dims[-1], num_bins)
        self.fc_yaw = nn.Linear(dims[-1], num_bins)
        self.fc_roll = nn.Linear(dims[-1], num_bins)
        self.fc_t = nn.Linear(dims[-1], 3)
        self.fc_exp = nn.Linear(dims[-1], 3 * num_kp)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image (B, 3, H, W) in [0, 1] -> pitch, yaw, roll (B, 66) scores of the angle's bins, t (B, 3), exp and kp
        (B, 3 K), scale (B, 1)."""
        x = image
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        x = self.norm(x.mean((-2, -1)))
        return {name: getattr(self, f"fc_{name}")(x) for name in ("pitch", "yaw", "roll", "t", "exp", "scale", "kp")}


class MotionExtractor(nn.Module):
    """src/modules/motion_extractor.py."""

    def __init__(self, **sizes):
        super().__init__()
        self.detector = ConvNeXtV2(**sizes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """As `ConvNeXtV2.forward`."""
        return self.detector(image)


class HourglassEncoder(nn.Module):
    def __init__(self, widths: list[int]):
        super().__init__()
        self.down_blocks = nn.ModuleList(ConvNorm(3, a, b, "down") for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: Tensor) -> list[Tensor]:
        """-> the input and the output of every block."""
        levels = [x]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels


class HourglassDecoder(nn.Module):
    """widths: of the levels, finest first; the finest one is joined with the input of `channels_in` channels."""

    def __init__(self, widths: list[int], channels_in: int):
        super().__init__()
        deepest = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            ConvNorm(3, widths[i] * (1 if i == deepest else 2), widths[i - 1], "up") for i in range(deepest, 0, -1)
        )
        self.out_filters = widths[0] + channels_in
        self.conv = nn.Conv3d(self.out_filters, self.out_filters, 3, padding=1)
        self.norm = nn.BatchNorm3d(self.out_filters)

    def forward(self, levels: list[Tensor]) -> Tensor:
        x = levels[-1]
        for block, skip in zip(self.up_blocks, reversed(levels[:-1]), strict=True):
            x = torch.cat([block(x), skip], 1)
        return F.relu(self.norm(self.conv(x)))


class Hourglass(nn.Module):
    """src/modules/util.py. (B, channels_in, D, H, W) -> (B, block_expansion + channels_in, D, H, W)."""

    def __init__(self, block_expansion: int, channels_in: int, max_features: int, num_blocks: int):
        super().__init__()
        widths = [min(max_features, block_expansion * 2**i) for i in range(num_blocks + 1)]
        self.encoder = HourglassEncoder([channels_in, *widths[1:]])
        self.decoder = HourglassDecoder(widths, channels_in)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def coordinate_grid(size: torch.Size, device: torch.device) -> Tensor:
    """size (D, H, W) -> (D, H, W, 3) float32: x, y, z from -1 to 1, first to last voxel."""
    z, y, x = (torch.linspace(-1, 1, n, device=device) for n in size)
    return torch.stack(torch.meshgrid(z, y, x, indexing="ij")[::-1], -1)


def sample(volume: Tensor, grid: Tensor) -> Tensor:
    """Trilinear lookup of volume (B, C, D, H, W) at grid (B, D, H, W, 3); computed in float32."""
    return F.grid_sample(volume.float(), grid.float(), align_corners=False).to(volume.dtype)


class DenseMotionNetwork(nn.Module):
    """src/modules/dense_motion.py."""

    KEYPOINT_VARIANCE = 0.01

    def __init__(
        self,
        num_kp: int,
        feature_channel: int,
        block_expansion: int = 32,
        max_features: int = 1024,
        num_blocks: int = 5,
        reshape_depth: int = 16,
        compress: int = 4,
    ):
        super().__init__()
        self.hourglass = Hourglass(block_expansion, (num_kp + 1) * (compress + 1), max_features, num_blocks)
        channels = self.hourglass.decoder.out_filters
        self.mask = nn.Conv3d(channels, num_kp + 1, 7, padding=3)
        self.compress = nn.Conv3d(feature_channel, compress, 1)
        self.norm = nn.BatchNorm3d(compress)
        self.occlusion = nn.Conv2d(channels * reshape_depth, 1, 7, padding=3)

    def forward(self, feature: Tensor, kp_driving: Tensor, kp_source: Tensor) -> tuple[Tensor, Tensor]:
        """feature (B, C, D, H, W), key points (B, K, 3) float32 -> deformation (B, D, H, W, 3), where each voxel looks
        in the source, float32; occlusion map (B, 1, H, W)."""
        B, K = kp_driving.shape[:2]
        small = F.relu(self.norm(self.compress(feature)))
        grid = coordinate_grid(feature.shape[2:], feature.device)
        driving, source = (kp.float()[:, :, None, None, None] for kp in (kp_driving, kp_source))

        # One motion per key point, which shifts the whole volume; the first motion stands still (background).
        motions = torch.cat([grid.expand(B, 1, *grid.shape), grid - driving + source], 1)
        deformed = sample(small.repeat_interleave(K + 1, 0), motions.flatten(0, 1)).unflatten(0, (B, K + 1))
        near_driving, near_source = (
            torch.exp(-0.5 * (grid - kp).square().sum(-1) / self.KEYPOINT_VARIANCE) for kp in (driving, source)
        )
        heat = F.pad(near_driving - near_source, (0, 0) * 3 + (1, 0)).to(feature.dtype)

        prediction = self.hourglass(torch.cat([heat[:, :, None], deformed], 2).flatten(1, 2))
        weights = self.mask(prediction).float().softmax(1)
        deformation = torch.einsum("bkdhw,bkdhwc->bdhwc", weights, motions)
        return deformation, torch.sigmoid(self.occlusion(prediction.flatten(1, 2)))


class WarpingNetwork(nn.Module):
    """src/modules/warping_network.py."""

    def __init__(
        self,
        num_kp: int = 21,
        block_expansion: int = 64,
        max_features: int = 512,
        num_down_blocks: int = 2,
        reshape_channel: int = 32,
        dense_motion_params: dict[str, int] | None = None,
    ):
        super().__init__()
        self.dense_motion_network = DenseMotionNetwork(num_kp, reshape_channel, **(dense_motion_params or {}))
        channels = block_expansion * 2**num_down_blocks
        self.third = ConvNorm(2, max_features, channels, slope=0.01)
        self.fourth = nn.Conv2d(channels, channels, 1)

    def forward(self, feature: Tensor, kp_source: Tensor, kp_driving: Tensor) -> dict[str, Tensor]:
        """feature (B, 32, 16, H, W), key points (B, K, 3) -> out (B, 256, H, W), occlusion_map (B, 1, H, W),
        deformation (B, 16, H, W, 3)."""
        deformation, occlusion = self.dense_motion_network(feature, kp_driving, kp_source)
        warped = sample(feature, deformation).flatten(1, 2)
        out = self.fourth(self.third(warped)) * occlusion
        return {"out": out, "occlusion_map": occlusion, "deformation": deformation}


class SpectralConv2d(nn.Module):
    """A convolution of odd size whose weight is divided by its largest singular value, u W v with the stored u and v;
    the names are those of `torch.nn.utils.spectral_norm`. Miyato et al., 1802.05957."""

    def __init__(self, channels_in: int, channels_out: int, size: int, bias: bool = True):
        super().__init__()
        plain = nn.Conv2d(channels_in, channels_out, size, bias=bias)
        self.weight_orig, self.bias = plain.weight, plain.bias
        flat = plain.weight.detach().flatten(1)
        self.register_buffer("weight_u", F.normalize(flat.sum(1), dim=0))
        self.register_buffer("weight_v", F.normalize(self.weight_u @ flat, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        norm = self.weight_u @ self.weight_orig.flatten(1) @ self.weight_v
        return F.conv2d(x, self.weight_orig / norm, self.bias, padding=self.weight_orig.shape[-1] // 2)


class SPADE(nn.Module):
    """Instance norm whose scale and shift are read from `condition`. Park et al., 1903.07291, equation 1."""

    HIDDEN = 128

    def __init__(self, channels: int, condition_channels: int):
        super().__init__()
        self.mlp_shared = nn.Sequential(nn.Conv2d(condition_channels, self.HIDDEN, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(self.HIDDEN, channels, 3, padding=1)
        self.mlp_beta = nn.Conv2d(self.HIDDEN, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shared = self.mlp_shared(F.interpolate(condition, size=x.shape[2:], mode="nearest"))
        return F.instance_norm(x) * (1 + self.mlp_gamma(shared)) + self.mlp_beta(shared)


class SPADEResnetBlock(nn.Module):
    """src/modules/util.py."""

    def __init__(self, channels_in: int, channels_out: int, condition_channels: int):
        super().__init__()
        middle = min(channels_in, channels_out)
        self.conv_0 = SpectralConv2d(channels_in, middle, 3)
        self.conv_1 = SpectralConv2d(middle, channels_out, 3)
        self.norm_0 = SPADE(channels_in, condition_channels)
        self.norm_1 = SPADE(middle, condition_channels)
        self.learned_shortcut = channels_in != channels_out
        if self.learned_shortcut:
            self.conv_s = SpectralConv2d(channels_in, channels_out, 1, bias=False)
            self.norm_s = SPADE(channels_in, condition_channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, condition)) if self.learned_shortcut else x
        x = self.conv_0(F.leaky_relu(self.norm_0(x, condition), 0.2))
        return shortcut + self.conv_1(F.leaky_relu(self.norm_1(x, condition), 0.2))


class SPADEDecoder(nn.Module):
    """src/modules/spade_generator.py."""

    LAST = 64  # channels before the picture, whatever the other sizes

    def __init__(self, upscale: int = 2, block_expansion: int = 64, max_features: int = 512, num_down_blocks: int = 2):
        super().__init__()
        channels = min(max_features, block_expansion * 2**num_down_blocks)
        self.fc = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        for i in range(6):
            self.add_module(f"G_middle_{i}", SPADEResnetBlock(2 * channels, 2 * channels, channels))
        self.up_0 = SPADEResnetBlock(2 * channels, channels, channels)
        self.up_1 = SPADEResnetBlock(channels, self.LAST, channels)
        self.conv_img = nn.Sequential(nn.Conv2d(self.LAST, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, feature: Tensor) -> Tensor:
        """feature (B, 256, H, W) -> picture (B, 3, 8 H, 8 W) in (0, 1)."""
        x = self.fc(feature)
        for i in range(6):
            x = getattr(self, f"G_middle_{i}")(x, feature)
        x = self.up_0(F.interpolate(x, scale_factor=2.0, mode="nearest"), feature)
        x = self.up_1(F.interpolate(x, scale_factor=2.0, mode="nearest"), feature)
        return torch.sigmoid(self.conv_img(F.leaky_relu(x, 0.2)))


class StitchingNetwork(nn.Module):
    """src/modules/stitching_retargeting_network.py. (B, input_size) -> (B, output_size)."""

    def __init__(self, input_size: int = 126, hidden_sizes: tuple[int, ...] = (128, 128, 64), output_size: int = 65):
        super().__init__()
        sizes = [input_size, *hidden_sizes]
        self.mlp = nn.Sequential()
        for a, b in zip(sizes, sizes[1:], strict=False):
            self.mlp.extend([nn.Linear(a, b), nn.ReLU()])
        self.mlp.append(nn.Linear(sizes[-1], output_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)
