# Each target is one verb of console/bootstrap.py, which needs nothing but python3.

.PHONY: run test kill-matrix lint clean-demo

run test kill-matrix lint clean-demo:
	@exec python3 console/bootstrap.py $@
