"""What several test files share: real services, free ports, processes that cannot outlive the test run."""
