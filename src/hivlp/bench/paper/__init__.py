"""The paper's speed table: HiVLP beside UNITER, LightningDOT, METER and CLIP, by pool size."""
