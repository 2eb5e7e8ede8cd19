"""SAR amplitude imagery of imaginary airfields with aircraft."""
