"""What a kernel is for, by its name, as torch and CUDA's libraries call them."""

from __future__ import annotations

import pytest
from tracing import by_kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26", "attention"),
        ("key_kernel", "attention"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "communication"),
        ("at::native::multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>", "optimizer"),
        ("at::native::multi_tensor_apply_kernel<CopyFunctor<float>>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "copies"),
        ("triton_poi_fused_mul_silu_1", "elementwise"),
        ("triton_red_fused__to_copy_amax_eq_exp_0", "elementwise"),
    ],
)
def test_a_kernel_is_of_one_kind(name: str, kind: str) -> None:
    assert by_kind({name: (1.0, 2.0)}) == {kind: 3.0}
