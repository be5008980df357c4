"""What hiding costs a device: quantise, mask and pack a displacement, beside AES alone (the limit) and bare float32."""

import numpy as np
from _measure import finish, interleaved
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from nfl_core.codec.quantise import modulus_bits, pack, quantise
from nfl_secure.secagg.prg import mask_values

NUM_VALUES, BITS, BATCH_MAX = 1_000_000, 2, 8


def main(runs: int = 7) -> None:
    """Measure `runs` times and print one JSON line."""
    generator = np.random.default_rng(0)
    x_P = generator.normal(0, 1e-3, NUM_VALUES).astype(np.float32)
    scales_P = np.full(NUM_VALUES, 2.5e-3, np.float32)
    k = modulus_bits(BITS, BATCH_MAX)
    seed, residual_P, sizes = bytes(range(32)), np.zeros(NUM_VALUES, np.float32), {}

    def ours() -> None:
        q_P, _ = quantise(x_P, scales_P, BITS, residual_P=residual_P)
        masked_P = (q_P.astype(np.int64) + mask_values(seed, NUM_VALUES, k)) & ((1 << k) - 1)
        sizes["ours"] = len(pack(masked_P.astype(np.uint32), k))

    def aes_alone() -> None:
        Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update_into(
            bytes(NUM_VALUES), bytearray(NUM_VALUES + 16)
        )

    def float32() -> None:
        sizes["float32"] = len(x_P.astype("<f4").tobytes())

    cpu_ms = interleaved({"ours": ours, "aes_alone": aes_alone, "float32": float32}, runs=runs)
    finish(
        "seal",
        ours={"cpu_ms_per_million_values": cpu_ms["ours"], "bytes_per_million_values": sizes["ours"]},
        against={
            "aes_alone": {"cpu_ms_per_million_values": cpu_ms["aes_alone"]},
            "float32": {"cpu_ms_per_million_values": cpu_ms["float32"], "bytes_per_million_values": sizes["float32"]},
        },
        runs=runs,
    )
