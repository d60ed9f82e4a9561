"""What a data node runs: it reads, decodes, augments and batches samples, and answers those who ask for them."""
