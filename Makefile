# Each target is one verb of console/bootstrap.py, which needs nothing but python3.

.PHONY: run test lint clean-demo

run test lint clean-demo:
	@exec python3 console/bootstrap.py $@
