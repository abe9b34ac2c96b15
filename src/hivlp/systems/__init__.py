"""Systems that HiVLP is compared with, as their authors published them: UNITER, LightningDOT, METER, and re-rankers."""
