"""What tests, figures and benchmarks need around them: real services, started and found."""
