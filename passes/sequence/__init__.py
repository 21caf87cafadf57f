"""What attention costs that ranks share: the methods of ir/sequence, recorded and priced."""
