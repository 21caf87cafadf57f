"""What is shown of a placement: bars, bytes of links, why, and policies side by side."""
