"""What happens during `fit`: the tap that samples batches, the best epoch, the order of callbacks."""
